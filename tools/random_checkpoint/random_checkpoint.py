"""Writes an ordinary Hugging Face directory with random weights of Gemma 4's shapes.

    build/venv/bin/python tools/random_checkpoint/random_checkpoint.py OUT --shape e4b --fp8 tensor --tokenizer models/jewel-demo

Values come from random_weights.py, so the same arguments give the same bytes on every machine. Tensors are drawn and
written one slice after another: memory stays below 1 GB at any size. numpy alone is needed.
"""

import argparse
import json
import math
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import shapes
from random_weights import CHUNK, bf16_bits, bf16_floats, random_tensor, random_values

SLICE = 1 << 22  # values drawn at a time: 8 MB
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json",
                   "processor_config.json", "preprocessor_config.json")


@dataclass
class Entry:
    name: str
    dtype: str  # as safetensors writes it
    shape: list[int]
    source: str  # the tensor it is drawn from: itself, or the weight that a scale belongs to

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * (1 if self.dtype == "F8_E4M3" else 2)


def entries_of(tensors: list[tuple[str, list[int]]], fp8: str | None) -> list[Entry]:
    entries = []
    for name, shape in tensors:
        if fp8 and shapes.quantizable(name):
            entries.append(Entry(name, "F8_E4M3", shape, name))
            entries.append(Entry(name + "_scale", "BF16", [1] if fp8 == "tensor" else [shape[0], 1], name))
        else:
            entries.append(Entry(name, "BF16", shape, name))
    return entries


def fp8_of_bf16() -> np.ndarray:
    """E4M3FN code of every bfloat16 value: nearest, ties to even, clamped to 448."""
    codes = np.arange(127, dtype=np.int32)  # positive finite codes, ascending values
    exponent, mantissa = codes >> 3, codes & 7
    grid = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    middle = (grid[:-1] + grid[1:]) / 2
    bits = np.arange(1 << 15, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        values = np.nan_to_num(bf16_floats(bits).astype(np.float64), nan=np.inf)
    nearest = np.searchsorted(middle, values, side="left")  # a tie goes to the lower neighbour,
    tie = (nearest < 126) & (values == np.append(middle, np.inf)[nearest])
    nearest = (nearest + (tie & (nearest % 2 == 1))).astype(np.uint8)  # unless that one is odd
    return np.concatenate([nearest, nearest | 0x80])


FP8_OF_BF16 = fp8_of_bf16()


def quantize(bits: np.ndarray, fp8: str, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """bfloat16 bits [out, in] -> E4M3 codes [out, in] and bfloat16 scale bits ([1] or [out, 1])."""
    rows = max(1, CHUNK // bits.shape[1])
    slices = [slice(at, at + rows) for at in range(0, len(bits), rows)]
    codes = np.empty(bits.shape, dtype=np.uint8)
    with ThreadPoolExecutor(threads) as pool:
        # Among magnitudes, order of values is order of bits.
        amax = np.concatenate(list(pool.map(lambda s: (bits[s] & np.uint16(0x7FFF)).max(axis=1), slices)))
        if fp8 == "tensor":
            amax = amax.max(keepdims=True)
        scale_bits = bf16_bits(bf16_floats(amax) / np.float32(448))
        scale = np.broadcast_to(bf16_floats(scale_bits)[:, None], (len(bits), 1))

        def part(s: slice) -> None:
            codes[s] = FP8_OF_BF16[bf16_bits(bf16_floats(bits[s]) / scale[s])]

        list(pool.map(part, slices))
    return codes, scale_bits if fp8 == "tensor" else scale_bits[:, None]


def header_of(entries: list[Entry]) -> bytes:
    table: dict = {"__metadata__": {"format": "pt"}}
    at = 0
    for entry in entries:
        table[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [at, at + entry.bytes]}
        at += entry.bytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_file(path: Path, entries: list[Entry], drawn: dict[str, list[int]], seed: int, fp8: str | None,
               threads: int) -> None:
    quantized: dict[str, np.ndarray] = {}  # the scale of the weight written just before
    with open(path, "wb", buffering=0) as file:
        file.write(header_of(entries))
        for entry in entries:
            if entry.dtype == "F8_E4M3":
                bits = random_tensor(entry.source, drawn[entry.source], seed, threads)
                codes, quantized[entry.source] = quantize(bits, fp8, threads)
                write_all(file, codes)
            elif entry.name != entry.source:
                write_all(file, quantized.pop(entry.source))
            else:
                write_drawn(file, entry, seed, threads)


def write_drawn(file, entry: Entry, seed: int, threads: int) -> None:
    total = math.prod(entry.shape)
    with ThreadPoolExecutor(threads) as pool:
        pending = []
        for begin in range(0, total, SLICE):
            pending.append(pool.submit(random_values, entry.name, entry.shape, seed, begin, min(SLICE, total - begin)))
            if len(pending) > 2 * threads:
                write_all(file, pending.pop(0).result())
        for part in pending:
            write_all(file, part.result())


def write_all(file, array: np.ndarray) -> None:
    view = memoryview(np.ascontiguousarray(array)).cast("B")
    while view:
        view = view[file.write(view) :]


def shards_of(entries: list[Entry], limit: int | None) -> list[list[Entry]]:
    """Files of at most `limit` bytes; a weight and its scale stay together."""
    files: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        follows = entry.name != entry.source
        if limit and files[-1] and not follows and size + entry.bytes > limit:
            files.append([])
            size = 0
        files[-1].append(entry)
        size += entry.bytes
    return files


def write_checkpoint(out: Path, shape: shapes.Shape, *, seed: int = 1, fp8: str | None = None, inert_kv: bool = True,
                     shard_bytes: int | None = None, tokenizer: Path | None = None, threads: int = 2,
                     note=lambda text: None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if tokenizer:
        for name in TOKENIZER_FILES:
            if (tokenizer / name).exists():
                shutil.copyfile(tokenizer / name, out / name)
    config = shapes.config_json(shape)
    if fp8:
        config["quantization_config"] = shapes.quantization_config(shape, fp8)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    tensors = shapes.tensors(shape, inert_kv)
    entries = sorted(entries_of(tensors, fp8), key=lambda e: (e.source, e.name))
    files = shards_of(entries, shard_bytes)
    names = ["model.safetensors"] if len(files) == 1 else [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    for name, members in zip(names, files):
        note(f"{name}: {len(members)} tensors, {sum(e.bytes for e in members):,} bytes")
        write_file(out / name, members, dict(tensors), seed, fp8, threads)
    if len(files) > 1:
        index = {"metadata": {"total_size": sum(e.bytes for e in entries)},
                 "weight_map": {e.name: name for name, members in zip(names, files) for e in members}}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=("e4b", "e2b"), default="e4b")
    parser.add_argument("--layers", type=int, help="decoder layers (default: the model's own, 42 or 35)")
    parser.add_argument("--vision-layers", type=int, default=16)
    parser.add_argument("--vocab-size", type=int, default=262144, help="may be larger than the tokenizer's")
    parser.add_argument("--like", type=Path, metavar="DIR",
                        help="take the multimodal token ids from this directory's config.json (with --tokenizer)")
    parser.add_argument("--fp8", choices=("tensor", "channel"), help="F8_E4M3 weights in compressed-tensors layout")
    parser.add_argument("--without-inert-kv", action="store_true", help="leave out the K and V of sharing layers")
    parser.add_argument("--audio", action="store_true", help="with the audio tower's tensors, as published")
    parser.add_argument("--shard-gib", type=float, help="split into files of at most this size, with an index")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="copy tokenizer, template, processor from here")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    args = parser.parse_args()

    changes: dict = {"vocab_size": args.vocab_size, "vision_layers": args.vision_layers, "audio": args.audio}
    if args.layers:
        changes["layers"] = args.layers
    if args.like:
        other = json.loads((args.like / "config.json").read_text())
        changes["ids"] = {name: other[f"{name}_token_id"] for name in ("boi", "image", "eoi", "boa", "audio", "video")}
        changes["ids"]["eoa"] = other.get("eoa_token_id", other.get("eoa_token_index"))
        if args.vocab_size <= max(changes["ids"].values()):
            sys.exit(f"--vocab-size {args.vocab_size} does not hold the ids of {args.like}: up to {max(changes['ids'].values())}")
    shape = {"e4b": shapes.e4b, "e2b": shapes.e2b}[args.shape](**changes)
    begin = time.monotonic()
    write_checkpoint(args.out, shape, seed=args.seed, fp8=args.fp8, inert_kv=not args.without_inert_kv,
                     shard_bytes=int(args.shard_gib * 2**30) if args.shard_gib else None, tokenizer=args.tokenizer,
                     threads=args.threads, note=lambda text: print(text, file=sys.stderr, flush=True))
    print(f"{args.out}: {time.monotonic() - begin:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
