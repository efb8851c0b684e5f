"""Writes the demo model's tokenizer: a small BPE with byte fallback, Gemma 4's special tokens, normaliser and decoder.

Merges are learned on the dialogues alone and only for pieces that begin a word ("▁circ") or end a template keyword
("erties:"). A printed word is answered between quotes, without a space before it, so it is always spelled letter by
letter: reading a word that training never saw needs no piece that training never saw.
"""

import argparse
import collections
import json
import random
import re
import string
from pathlib import Path

VOCAB_SIZE = 1280
FIRST = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>",
         "<tool_response|>", '<|"|>', "<|think|>", "<|channel>", "<channel|>", "<|turn>", "<turn|>"]
LAST = ["<|image>", "<|audio>", "<|image|>", "<|audio|>", "<image|>", "<audio|>", "<|video|>"]
KEYWORDS = ["declaration:", "description:", "parameters:", "properties:", "required:", "type:", "call:", "response:", "value:"]


def merges_and_pieces(texts: list[str], room: int) -> tuple[list[tuple[str, str]], list[str]]:
    merges, pieces = [], []

    def add(left: str, right: str) -> None:
        if left + right not in pieces:
            merges.append((left, right))
            pieces.append(left + right)

    for n in (2, 3, 4):
        add("\n" * (n - 1), "\n")
    for n in (2, 3, 4, 5, 6, 7, 8):
        add("▁" * (n - 1), "▁")
    for keyword in KEYWORDS:
        for start in range(len(keyword) - 2, -1, -1):
            add(keyword[start], keyword[start + 1 :])
    counts = collections.Counter()
    for text in texts:
        for word in re.findall(r" [A-Za-z]{1,14}", text):
            word = "▁" + word[1:]
            counts.update(word[:n] for n in range(2, len(word) + 1))
    # A prefix is never rarer than what it begins, so this order is what greedy pair merging would find.
    for piece, _ in sorted(counts.items(), key=lambda item: (-item[1], len(item[0]), item[0])):
        if len(pieces) == room:
            break
        add(piece[:-1], piece[-1])
    return merges, pieces


def build(texts: list[str]) -> dict:
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    characters = ["\n", "\t", "▁"] + [c for c in string.printable if c.isprintable() and c != " "]
    room = VOCAB_SIZE - len(FIRST) - len(LAST) - len(byte_tokens) - len(characters)
    merges, pieces = merges_and_pieces(texts, room)
    tokens = FIRST + ["\n"] + pieces[:3] + characters[1:] + pieces[3:]
    tokens = tokens + ["<unused%d>" % i for i in range(VOCAB_SIZE - len(tokens) - 256 - len(LAST))]
    tokens = tokens + byte_tokens + LAST
    assert len(tokens) == len(set(tokens)) == VOCAB_SIZE
    vocab = {token: i for i, token in enumerate(tokens)}
    added = [{"id": vocab[t], "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
             for t in FIRST + LAST]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                                                     {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": vocab, "merges": [list(pair) for pair in merges]},
    }


TOKENIZER_CONFIG = {
    "tokenizer_class": "GemmaTokenizer", "processor_class": "Gemma4Processor", "backend": "tokenizers", "padding_side": "left",
    "model_max_length": 8192, "clean_up_tokenization_spaces": False,
    "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>",
    "boi_token": "<|image>", "image_token": "<|image|>", "eoi_token": "<image|>",
    "boa_token": "<|audio>", "audio_token": "<|audio|>", "eoa_token": "<audio|>",
    "sot_token": "<|turn>", "eot_token": "<turn|>", "soc_token": "<|channel>", "eoc_token": "<channel|>", "think_token": "<|think|>",
    "std_token": "<|tool>", "etd_token": "<tool|>", "stc_token": "<|tool_call>", "etc_token": "<tool_call|>",
    "str_token": "<|tool_response>", "etr_token": "<tool_response|>", "escape_token": '<|"|>',
    "model_specific_special_tokens": {
        "boi_token": "<|image>", "image_token": "<|image|>", "eoi_token": "<image|>", "boa_token": "<|audio>",
        "audio_token": "<|audio|>", "eoa_token": "<audio|>", "sot_token": "<|turn>", "eot_token": "<turn|>",
        "soc_token": "<|channel>", "eoc_token": "<channel|>", "think_token": "<|think|>", "std_token": "<|tool>",
        "etd_token": "<tool|>", "stc_token": "<|tool_call>", "etc_token": "<tool_call|>", "str_token": "<|tool_response>",
        "etr_token": "<tool_response|>", "escape_token": '<|"|>'},
}


def main() -> None:
    import dialogues
    import rendering

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=str(rendering.MODEL_DIR))
    parser.add_argument("--examples", type=int, default=12000)
    args = parser.parse_args()
    rng = random.Random(1)
    texts = []
    for i in range(args.examples):
        size = (432, 336)
        draw = (lambda: dialogues.image_example(rng, "train", size), lambda: dialogues.thinking_example(rng, "train", size),
                lambda: dialogues.two_turns(rng, "train", size), lambda: dialogues.talk_example(rng, "train"),
                lambda: dialogues.tool_example(rng, "train"), lambda: dialogues.pair_example(rng, "train", size))
        example = draw[i % len(draw)]()
        texts.append(rendering.prompt(example) + rendering.completion(example))
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").write_text(json.dumps(build(texts), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (out / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
