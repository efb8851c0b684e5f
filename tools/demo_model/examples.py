"""Draws the bundled example pictures, models/examples/*.png, and says in examples.json what to ask about each."""

import json
import random
from pathlib import Path

import assets
import rendering
from scenes import Scene, Shape, Text, draw

OUT = rendering.MODEL_DIR.parent / "examples"


def font(name: str) -> str:
    return next(path for path in assets.fonts("heldout") if Path(path).name == name)


def word() -> Scene:
    ink, paper = (0.13, 0.2, 0.33), ((0.97, 0.94, 0.86), (0.88, 0.9, 0.84))
    return Scene(640, 480, paper, 0.9, 0.01, 24, texts=[Text("violin", font("Caladea-Bold.ttf"), 104, 320, 236, -0.05, ink, None)])


def number() -> Scene:
    ink, paper = (0.98, 0.97, 0.93), ((0.1, 0.28, 0.33), (0.13, 0.2, 0.3))
    return Scene(640, 360, paper, 2.0, 0.02, 24, texts=[Text("70425", font("RobotoSlab-Bold.otf"), 120, 330, 176, 0.03, ink, None)])


def shapes() -> Scene:
    red, blue, green = (0.86, 0.1, 0.12), (0.12, 0.3, 0.85), (0.1, 0.6, 0.22)
    found = [Shape("circle", "red", red, 110, 140, 62, 0), Shape("square", "blue", blue, 300, 330, 78, 0.2), Shape("circle", "red", red, 330, 110, 55, 0),
             Shape("triangle", "green", green, 535, 330, 80, 0.1), Shape("circle", "red", red, 520, 120, 68, 0)]
    return Scene(640, 480, ((0.93, 0.94, 0.96), (0.84, 0.87, 0.92)), 1.2, 0.01, 24, shapes=found)


EXAMPLES = [
    ("word.png", word, [("What word is in the picture?", 'The word is "violin".'), ("Spell the word.", "v-i-o-l-i-n.")]),
    ("number.png", number, [("What number is this?", "The number is 70425.")]),
    ("shapes.png", shapes, [("How many circles are there?", "There are 3 circles."), ("What colour is the triangle?", "The triangle is green."),
                            ("What shape is on the left?", "The shape on the left is a red circle."), ("Which shape is blue?", "The blue shape is a square.")]),
]


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    listed = []
    for name, scene, questions in EXAMPLES:
        draw(scene(), random.Random(name)).quantize(128).save(OUT / name, optimize=True)
        listed.append({"image": name, "questions": [{"question": q, "answer": a} for q, a in questions]})
    (OUT / "examples.json").write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
