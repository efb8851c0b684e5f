"""The held-out set: pictures and conversations of fonts, words, colour shades and phrasings that training never saw.

Pictures are drawn by Pillow (scenes.draw) at ordinary sizes, so they also pass through the real resize. The same seed
gives the same set wherever the same font packages are installed. `--out DIR` writes PNG files and heldout.jsonl, one
object a line: {id, skill, images, messages, tools, enable_thinking, answer}; `answer` is the whole expected output, up
to but without its stop token.
"""

import argparse
import json
import random
from pathlib import Path

import dialogues
import rendering
import scenes

SIZES = ((640, 480), (320, 240), (800, 600), (512, 512), (480, 640), (640, 360), (1280, 720), (400, 300), (600, 400), (384, 256), (720, 300), (300, 300))


def only(skill: str, question):
    """Draws until the example is of the skill; `question` decides what the scene holds."""
    def draw(rng, split, size, longest=12):
        while True:
            example = question(rng, split, size, longest)
            if example.skill == skill:
                return example
    return draw


def text_only(draw):
    return lambda rng, split, size, longest=12: draw(rng, split)


def number_or_word(number: bool):
    """Reading proper: the answer holds the printed text."""
    def draw(rng, split, size, longest=12):
        while True:
            example = dialogues.image_example(rng, split, size, longest)
            texts = example.scenes[0].texts
            if texts and texts[0].string in example.answer and dialogues.is_number(texts[0].string) == number:
                return example
    return draw


SKILLS = {
    "read a word": number_or_word(False),
    "read a number": number_or_word(True),
    "shapes": only("shapes", dialogues.image_example),
    "think": only("think", dialogues.thinking_example),
    "second turn": dialogues.two_turns,
    "two pictures": dialogues.pair_example,
    "tools with a picture": dialogues.image_tool_example,
    "tools": text_only(dialogues.tool_example),
    "small talk": text_only(dialogues.talk_example),
}


def sample_size(rng: random.Random) -> tuple[int, int]:
    return rng.choice(SIZES) if rng.random() < 0.7 else (rng.randint(240, 1000), rng.randint(240, 800))


def draw_examples(skill: str, n: int, seed: int, budget: int = 70):
    """-> n pairs of Example and its pictures."""
    rng = random.Random(f"{seed} {skill} {budget}")
    scenes.TARGET_BUDGET = budget  # how small print may be depends on what the resize leaves of it
    for _ in range(n):
        example = SKILLS[skill](rng, "heldout", sample_size(rng))
        yield example, [scenes.draw(scene, rng) for scene in example.scenes]
    scenes.TARGET_BUDGET = None


def draw_all(*args) -> list:
    return list(draw_examples(*args))


def expected(example: dialogues.Example) -> str:
    text = rendering.completion(example)
    return text.removesuffix("<turn|>").removesuffix("<|tool_response>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--n", type=int, default=240, help="prompts in all, spread over the skills that have pictures")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--all-skills", action="store_true", help="also the skills without pictures")
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    skills = [s for s in SKILLS if args.all_skills or s not in ("tools", "small talk")]
    counts = {skill: args.n // len(skills) + (i < args.n % len(skills)) for i, skill in enumerate(skills)}
    with open(out / "heldout.jsonl", "w", encoding="utf-8") as lines:
        for skill, count in counts.items():
            for i, (example, pictures) in enumerate(draw_examples(skill, count, args.seed)):
                name = f"{skill.replace(' ', '-')}-{i:03d}"
                files = [f"{name}-{k}.png" for k in range(len(pictures))]
                for file, picture in zip(files, pictures):
                    picture.save(out / file, optimize=True)
                json.dump({"id": name, "skill": skill, "images": files, "messages": example.messages, "tools": example.tools,
                           "enable_thinking": example.thinking, "answer": expected(example)}, lines, ensure_ascii=False)
                lines.write("\n")


if __name__ == "__main__":
    main()
