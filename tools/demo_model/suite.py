"""A held-out suite for `jewel eval`: models/heldout/suite.jsonl and its pictures, small enough to live in the tree.

Fonts, words, shades and phrasings are those that training never saw (heldout.py); pictures are drawn small and kept as
JPEG. A task is judged by what its category is about: the printed word or number must occur in the answer, the rest must
match as a whole (a tool call as `name(arguments)`, keys sorted). The same seed gives the same file wherever the same
font packages are installed.
"""

import argparse
import json
import random
from pathlib import Path

import dialogues
import heldout
import scenes

SIZES = ((256, 192), (288, 192), (240, 240), (240, 180), (192, 256))
CATEGORIES = {  # category: metric
    "read a word": "contains",
    "read a number": "contains",
    "shapes": "exact",
    "two pictures": "exact",
    "tools": "exact",
    "small talk": "exact",
}


def judged(example: dialogues.Example, metric: str) -> str:
    if metric == "contains":
        return example.scenes[0].texts[0].string
    if example.call:
        name, arguments = example.call
        return f"{name}({json.dumps(arguments, sort_keys=True, separators=(',', ':'), ensure_ascii=False)})"
    return example.answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(Path(__file__).resolve().parents[2] / "models" / "heldout"), metavar="DIR")
    parser.add_argument("--n", type=int, default=10, help="tasks of each category")
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    scenes.TARGET_BUDGET = 70
    with open(out / "suite.jsonl", "w", encoding="utf-8") as lines:
        for category, metric in CATEGORIES.items():
            rng = random.Random(f"suite {args.seed} {category}")
            for i in range(args.n):
                example = heldout.SKILLS[category](rng, "heldout", rng.choice(SIZES))
                name = f"{category.replace(' ', '-')}-{i:02d}"
                files = [f"{name}-{k}.jpg" if len(example.scenes) > 1 else f"{name}.jpg" for k in range(len(example.scenes))]
                for file, scene in zip(files, example.scenes):
                    scenes.draw(scene, rng).convert("RGB").save(out / file, quality=72, optimize=True)
                task = {"id": name, "category": category, "metric": metric, "answers": [judged(example, metric)], "images": files,
                        "messages": example.messages}
                if example.tools:
                    task["tools"] = example.tools
                if example.thinking:
                    task["enable_thinking"] = True
                lines.write(json.dumps(task, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
