"""Held-out accuracy by skill: greedy, through Transformers' own processor and generate, exact match of the whole output.

"Exact" asks for every character, the thought included. Examples without an image are in the table too. Writes
eval.json beside the model.
"""

import argparse
import collections
import json
import multiprocessing
import os
import time
from pathlib import Path

import torch
from transformers import AutoProcessor, Gemma4ForConditionalGeneration

import heldout
import rendering

STOPS = "<turn|>", "<|tool_response>", "<eos>"


@torch.no_grad()
def answers(model, processor, examples, budget: int, sampled: bool = False, size: int = 200) -> list[str]:
    found = [""] * len(examples)
    # The processor takes prompts of one batch all with pictures or all without.
    for group in ([i for i, (_, p) in enumerate(examples) if p], [i for i, (_, p) in enumerate(examples) if not p]):
        for start in range(0, len(group), size):
            part = group[start : start + size]
            texts = [rendering.prompt(examples[i][0]) for i in part]
            kwargs = {"images": [examples[i][1] for i in part], "max_soft_tokens": budget} if examples[part[0]][1] else {}
            inputs = processor(text=texts, padding=True, return_tensors="pt", **kwargs).to(model.device)
            options = {"do_sample": True} if sampled else {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
            output = model.generate(**inputs, max_new_tokens=160, **options)
            for i, row in zip(part, output[:, inputs["input_ids"].shape[1] :]):
                text = processor.tokenizer.decode(row, skip_special_tokens=False)
                found[i] = text[: min((text.find(stop) for stop in STOPS if stop in text), default=len(text))]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(rendering.MODEL_DIR))
    parser.add_argument("--n", type=int, default=200, help="examples a skill at budget 70; a half of that at 140, 280 and sampled")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--quick", action="store_true", help="budget 70, greedy only")
    parser.add_argument("--misses", type=int, default=0, help="print so many wrong answers a row")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no further row after so long")
    parser.add_argument("--out", help="eval.json to write")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processor = AutoProcessor.from_pretrained(rendering.MODEL_DIR)
    model = Gemma4ForConditionalGeneration.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).to(device).eval()
    rows = [(skill, 70, False, args.n) for skill in heldout.SKILLS]
    if not args.quick:
        rows += [(skill, budget, False, args.n // 2) for budget in (140, 280) for skill in ("read a word", "read a number", "shapes")]
        rows += [(skill, 70, True, args.n // 2) for skill in ("read a word", "shapes", "tools", "small talk")]
    results, begin = [], time.time()
    torch.manual_seed(args.seed)
    pool = multiprocessing.get_context("spawn").Pool(min(len(rows), os.cpu_count() or 1))
    drawn = [pool.apply_async(heldout.draw_all, (skill, n, args.seed, budget)) for skill, budget, _, n in rows]
    for (skill, budget, sampled, n), job in zip(rows, drawn):
        if time.time() - begin > args.seconds:
            break
        examples = job.get()
        found = answers(model, processor, examples, budget, sampled)
        expected = [heldout.expected(example) for example, _ in examples]
        right = sum(a == b for a, b in zip(found, expected))
        results.append({"skill": skill, "image_tokens": budget, "decoding": "sampled" if sampled else "greedy", "n": n, "right": right})
        print(f"{skill:22} budget {budget:3} {'sampled' if sampled else 'greedy ':7} {right:4}/{n} = {100 * right / n:5.1f} %   ({time.time() - begin:.0f} s)", flush=True)
        shown = 0
        for (example, pictures), a, b in zip(examples, found, expected):
            if a != b and shown < args.misses:
                shown += 1
                texts = [t for s in example.scenes for t in s.texts]
                note = f" [{Path(texts[0].font).name} {texts[0].size} of {pictures[0].size}]" if texts else ""
                print(f"    {rendering.prompt(example)[-90:]!r}\n      expected {b!r}\n      found    {a!r}{note}")
    total = collections.Counter()
    for row in results[: len(heldout.SKILLS)]:
        total["right"] += row["right"]
        total["n"] += row["n"]
    print(f"all skills at budget 70: {total['right']}/{total['n']}")
    pool.terminate()
    if args.out:
        Path(args.out).write_text(json.dumps({"model": "jewel-demo", "dtype": args.dtype, "seed": args.seed, "exact_match": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
