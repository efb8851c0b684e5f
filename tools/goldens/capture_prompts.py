"""Captures what Transformers answers, greedily in FP32, to held-out prompts with pictures: tests/data/golden/prompts/.

    build/venv/bin/python tools/goldens/capture_prompts.py

Pictures and questions are those of tools/demo_model/heldout.py: words, fonts, shades and phrasings that training never
saw. Pictures are small (they are enlarged to the budget anyway) and without grain, so that 224 prompts stay small.
prompts.jsonl has one object a line: images, messages, tools, thinking, prompt_tokens, token_ids, and `margin`, the
smallest gap between the best two logits on the way: what a last-bit difference would have to bridge to change the answer.
"""

import argparse
import json
import random
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, Gemma4ForConditionalGeneration, Gemma4ImageProcessor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "demo_model"))

import dialogues  # noqa: E402
import heldout  # noqa: E402
import rendering  # noqa: E402
import scenes  # noqa: E402
from capture import versions  # noqa: E402
from cases import digest_of_file  # noqa: E402

OUT = ROOT / "tests" / "data" / "golden" / "prompts"
SIZES = ((200, 150), (150, 200), (176, 176), (224, 126), (240, 110), (213, 142))
MAX_TOKENS = 96
SKILLS = {"read a word": 40, "read a number": 36, "shapes": 50, "think": 26, "second turn": 28, "two pictures": 20,
          "tools with a picture": 24}


def draw_example(skill: str, rng: random.Random) -> tuple[dialogues.Example, list]:
    while True:
        example = heldout.SKILLS[skill](rng, "heldout", rng.choice(SIZES))
        if example.scenes:  # thinking may come without a picture
            break
    for scene in example.scenes:
        scene.noise = 0.0
    return example, [scenes.draw(scene, rng) for scene in example.scenes]


class Reference:
    def __init__(self, directory: Path, device: str):
        self.device = device
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        processor = json.loads((directory / "processor_config.json").read_text())["image_processor"]
        self.budget = processor["max_soft_tokens"]
        self.images = Gemma4ImageProcessor(max_soft_tokens=self.budget)
        self.model = Gemma4ForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval().to(device)
        config = self.model.config
        self.marks = [self.tokenizer.convert_ids_to_tokens(i) for i in (config.boi_token_id, config.image_token_id, config.eoi_token_id)]

    @torch.no_grad()
    def answer(self, example: dialogues.Example, pictures: list) -> tuple[int, list[int], float]:
        begin, place, end = self.marks
        inputs = self.images(pictures, return_tensors="pt")
        pieces = rendering.prompt(example).split(place)
        text = pieces[0]
        for count, piece in zip(inputs.pop("num_soft_tokens_per_image"), pieces[1:], strict=True):
            text += begin + place * int(count) + end + piece
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        tensors = {name: value.to(self.device) for name, value in inputs.items()}
        out = self.model.generate(input_ids=ids.to(self.device), **tensors, do_sample=False, temperature=None,
                                  top_k=None, top_p=None, max_new_tokens=MAX_TOKENS,
                                  return_dict_in_generate=True, output_logits=True)
        best = torch.cat(out.logits).float().topk(2, -1).values
        return ids.shape[1], out.sequences[0, ids.shape[1] :].tolist(), float((best[:, 0] - best[:, 1]).min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "jewel-demo")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="the model is tiny: more than one costs more than it gives")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    reference = Reference(args.model, args.device)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    scenes.TARGET_BUDGET = reference.budget  # how small print may be depends on what the resize leaves of it
    lines, right = [], 0
    for index, skill in enumerate(skill for skill, count in SKILLS.items() for _ in range(count)):
        example, pictures = draw_example(skill, random.Random(args.seed * 1000 + index))
        names = [f"{index:03d}{'ab'[number] if len(pictures) > 1 else ''}.png" for number in range(len(pictures))]
        for name, image in zip(names, pictures):
            image.save(OUT / name, optimize=True)
        prompt_tokens, token_ids, margin = reference.answer(example, pictures)
        text = reference.tokenizer.decode(token_ids, skip_special_tokens=False)
        right += text == rendering.completion(example)
        lines.append({"skill": skill, "images": names, "messages": example.messages, "tools": example.tools or [], "thinking": example.thinking,
                      "prompt_tokens": prompt_tokens, "token_ids": token_ids, "margin": round(margin, 6)})
        if index % 16 == 0:
            print(index, repr(text), f"margin {margin:.4f}", flush=True)
    (OUT / "prompts.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines))
    smallest = min(line["margin"] for line in lines)
    note = {"model_digest": digest_of_file(args.model / "model.safetensors"), "versions": versions(args.device), "prompts": len(lines), "max_tokens": MAX_TOKENS, "dtype": "float32",
            "image_budget": reference.budget, "exactly_the_wanted_answer": right, "smallest_margin": smallest}
    (OUT / "capture.json").write_text(json.dumps(note, indent=1) + "\n")
    size = sum(file.stat().st_size for file in OUT.iterdir())
    print(f"{len(lines)} prompts, {right} answered exactly as wanted, smallest margin {smallest}, {size:,} bytes")


if __name__ == "__main__":
    main()
