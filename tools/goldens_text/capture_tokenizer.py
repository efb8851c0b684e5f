#!/usr/bin/env python3
"""Captures what the reference tokenizer makes of the random texts, as hashes: tests/data/text/tokenizer_*.txt.

usage: capture_tokenizer.py SYNTHETIC_TOKENIZER_JSON
  (build/release/tests/text/write_synthetic_tokenizer writes that file)

Needs tokenizers 0.23.2. A golden file is: the hash of the tokenizer.json, how many texts a line stands for, then per line the
hash of the texts, of their ids with special tokens parsed, and of their ids with special tokens as text.
"""

import json
import pathlib
import struct
import sys

import tokenizers

from random_text import fnv1a, random_text

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data/text"
TEXTS, BLOCK = 12000, 20


def ids_hash(tokenizer, text, value):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return fnv1a(struct.pack(f"<{len(ids) + 1}I", len(ids), *ids), value)


def capture(path, out):
    assert tokenizers.__version__ == "0.23.2", tokenizers.__version__
    data = path.read_bytes()
    parse = tokenizers.Tokenizer.from_str(data.decode())
    as_text = tokenizers.Tokenizer.from_str(data.decode())
    as_text.encode_special_tokens = True
    fragments = [f.encode() for f in json.loads((DATA / "fragments.json").read_text())]
    lines = [f"{fnv1a(data):016x} {TEXTS} {BLOCK}"]
    for first in range(0, TEXTS, BLOCK):
        hashes = [fnv1a(b"")] * 3
        for i in range(first, first + BLOCK):
            raw = random_text(fragments, i)
            text = raw.decode("utf-8", "replace")
            hashes[0] = fnv1a(raw, hashes[0])
            hashes[1] = ids_hash(parse, text, hashes[1])
            hashes[2] = ids_hash(as_text, text, hashes[2])
        lines.append(" ".join(f"{h:016x}" for h in hashes))
    out.write_text("\n".join(lines) + "\n")
    print(out, parse.get_vocab_size(), "entries")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    capture(ROOT / "models/jewel-demo/tokenizer.json", DATA / "tokenizer_demo.txt")
    capture(pathlib.Path(sys.argv[1]), DATA / "tokenizer_synthetic.txt")
