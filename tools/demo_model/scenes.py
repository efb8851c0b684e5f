"""What is in a picture: coloured shapes and printed text on a background, sampled at random and drawn with Pillow.

A Scene is a description in pixels of a canvas of `width` x `height`. `draw` renders it on the CPU (held-out pictures,
examples); compose.py renders the same description on the GPU for training. Left/right and top/bottom are by centres.
"""

import math
import random
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import assets

KINDS = ("circle", "square", "triangle", "star", "diamond", "cross")
# Hue in degrees, saturation and value ranges; a held-out colour lies in the same box but in cells training skips.
COLOURS = {
    "red": ((-8, 6), (0.82, 1.0), (0.75, 1.0)),
    "orange": ((24, 36), (0.88, 1.0), (0.92, 1.0)),
    "yellow": ((51, 61), (0.75, 1.0), (0.88, 1.0)),
    "green": ((100, 145), (0.65, 1.0), (0.45, 0.85)),
    "blue": ((210, 240), (0.75, 1.0), (0.6, 1.0)),
    "purple": ((272, 292), (0.6, 1.0), (0.45, 0.8)),
    "black": ((0, 360), (0.0, 0.2), (0.0, 0.12)),
    "white": ((0, 360), (0.0, 0.04), (0.95, 1.0)),
}
ASPECTS = (4 / 3, 4 / 3, 4 / 3, 1.0, 16 / 9, 3 / 2, 3 / 4, 2.0)  # width over height, half of all pictures; the rest have any
LEGIBLE = 24  # pixels of font size after the resize to the token budget
TARGET_BUDGET = None  # set while drawing pictures that are yet to be resized; None: a canvas is what the model sees


@dataclass
class Shape:
    kind: str
    colour: str
    rgb: tuple[float, float, float]
    x: float
    y: float
    radius: float
    angle: float  # radians

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"


@dataclass
class Text:
    string: str
    font: str
    size: int  # of the font, in pixels
    x: float  # centre
    y: float
    angle: float  # radians
    rgb: tuple[float, float, float]
    colour: str | None  # a name, when the text has one of COLOURS


@dataclass
class Scene:
    width: int
    height: int
    background: tuple  # two rgb colours
    background_angle: float
    noise: float  # standard deviation, of 1.0
    legible: float  # smallest font size to print in, pixels
    shapes: list[Shape] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)


def hsv(h: float, s: float, v: float) -> tuple[float, float, float]:
    h = (h % 360) / 60
    f = h - int(h)
    p, q, t = v * (1 - s), v * (1 - s * f), v * (1 - s * (1 - f))
    return [(v, t, p), (q, v, p), (p, v, t), (p, q, v), (t, p, v), (v, p, q)][int(h)]


def named_colour(rng: random.Random, name: str, split: str) -> tuple[float, float, float]:
    """A shade of the colour. The box is a checkerboard of 4 cells a side: training skips every fourth, held-out uses those."""
    while True:
        cells = [rng.random() for _ in range(3)]
        if (sum(int(c * 4) for c in cells) % 4 == 3) == (split == "heldout"):
            return hsv(*(low + c * (high - low) for c, (low, high) in zip(cells, COLOURS[name])))


def distance(a, b) -> float:
    """Weighted so that it follows what the eye calls different, roughly."""
    dr, dg, db = (x - y for x, y in zip(a, b))
    return math.sqrt(0.30 * dr * dr + 0.55 * dg * dg + 0.15 * db * db)


def sample_background(rng: random.Random) -> tuple:
    style = rng.random()
    if style < 0.35:
        base = hsv(rng.uniform(0, 360), rng.uniform(0, 0.12), rng.uniform(0.8, 1.0))
    elif style < 0.5:
        base = hsv(rng.uniform(0, 360), rng.uniform(0, 0.4), rng.uniform(0.05, 0.3))
    elif style < 0.65:
        base = (1.0, 1.0, 1.0)
    else:
        base = tuple(rng.random() for _ in range(3))
    if rng.random() < 0.5:
        return base, base
    drift = 0.25 if rng.random() < 0.7 else 0.5
    other = tuple(min(1.0, max(0.0, c + rng.uniform(-drift, drift))) for c in base)
    return base, other


def far_from(rgb, background, least: float) -> bool:
    middle = tuple((a + b) / 2 for a, b in zip(*background))
    return all(distance(rgb, other) >= least for other in (*background, middle))


def budget_size(width: float, height: float, budget: int) -> tuple[int, int]:
    """Width and height after the reference's resize: as many pixels as the budget allows, multiples of 48."""
    factor = math.sqrt(budget * 9 * 256 / (width * height))
    return int(factor * width / 48) * 48, int(factor * height / 48) * 48


def sample_canvas(rng: random.Random, budget: int) -> tuple[int, int]:
    aspect = rng.choice(ASPECTS) if rng.random() < 0.5 else math.exp(rng.uniform(math.log(0.5), math.log(3.2)))
    return budget_size(aspect, 1.0, budget)


def sample_scene(rng: random.Random, width: int, height: int) -> Scene:
    noise = 0.0 if rng.random() < 0.4 else rng.uniform(0, 0.06)
    legible = LEGIBLE * (math.sqrt(width * height / (TARGET_BUDGET * 9 * 256)) if TARGET_BUDGET else 1.0)
    return Scene(width, height, sample_background(rng), rng.uniform(0, 2 * math.pi), noise, legible)


def add_shape(rng: random.Random, scene: Scene, kind: str, colour: str, split: str, gap: float = 0.0,
              radius_range=(0.07, 0.2)) -> Shape | None:
    """Adds a shape clear of all others (by at least `gap` of the canvas in x and in y too); None if there is no room.

    White on white and the like are refused by changing the background, not the colour asked for.
    """
    unit = math.sqrt(scene.width * scene.height)
    for attempt in range(60):
        rgb = named_colour(rng, colour, split)
        if far_from(rgb, scene.background, 0.2):
            break
        if not scene.shapes and not scene.texts:
            scene.background = sample_background(rng)
    else:
        return None
    for attempt in range(60):
        shrink = 1.0 - attempt / 90
        radius = unit * rng.uniform(*radius_range) * shrink
        radius = min(radius, 0.46 * scene.height, 0.46 * scene.width)
        x = rng.uniform(radius * 1.05, scene.width - radius * 1.05)
        y = rng.uniform(radius * 1.05, scene.height - radius * 1.05)
        apart = all(
            math.hypot(x - s.x, y - s.y) > 1.15 * (radius + s.radius)
            and (not gap or (abs(x - s.x) > gap * scene.width and abs(y - s.y) > gap * scene.height))
            for s in scene.shapes
        )
        clear = all(
            abs(x - t.x) > radius + text_extent(t)[0] / 2 + 4 or abs(y - t.y) > radius + text_extent(t)[1] / 2 + 4
            for t in scene.texts
        )
        if apart and clear:
            angle = rng.uniform(-0.35, 0.35) if kind in ("square", "triangle", "cross") else rng.uniform(-0.3, 0.3)
            shape = Shape(kind, colour, rgb, x, y, radius, angle)
            scene.shapes.append(shape)
            return shape
    return None


@lru_cache(4096)
def load_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def text_extent(text: Text) -> tuple[float, float]:
    """Width and height of the turned text's bounding box."""
    width, height = load_font(text.font, text.size).getlength(text.string), text.size * 1.15
    c, s = abs(math.cos(text.angle)), abs(math.sin(text.angle))
    return width * c + height * s, width * s + height * c


def add_text(rng: random.Random, scene: Scene, string: str, split: str, band=(0.0, 1.0), colour: str | None = None) -> Text:
    """Prints a line inside a horizontal band of the canvas (fractions of its height), as large as chance and room say."""
    least = 0.28
    for attempt in range(200):
        if colour:
            rgb = named_colour(rng, colour, split)
        elif rng.random() < 0.35:
            rgb = hsv(rng.uniform(0, 360), rng.uniform(0, 0.3), rng.uniform(0, 0.2) if rng.random() < 0.6 else rng.uniform(0.85, 1))
        else:
            rgb = tuple(rng.random() for _ in range(3))
        if far_from(rgb, scene.background, least):
            break
        if not scene.shapes and not scene.texts and attempt % 3 == 2:
            scene.background = sample_background(rng)
        least -= 0.001
    unit = math.sqrt(scene.width * scene.height)
    font = rng.choice(assets.fonts(split))
    angle = 0.0 if rng.random() < 0.4 else rng.gauss(0, 0.05)
    if rng.random() < 0.06:
        angle = rng.uniform(-0.22, 0.22)
    room_y = (band[1] - band[0]) * scene.height * 0.9
    size = int(math.exp(rng.uniform(math.log(scene.legible), math.log(0.36 * unit))))
    text = Text(string, font, size, 0, 0, angle, rgb, colour)
    for _ in range(4):
        w, h = text_extent(text)
        shrink = min(1.0, 0.94 * scene.width / w, room_y / h)
        if shrink == 1.0:
            break
        text.size = max(int(0.8 * scene.legible), int(text.size * shrink * rng.uniform(0.8, 1.0)))
    w, h = text_extent(text)
    free_x, free_y = max(scene.width - w, 0) / 2, max((band[1] - band[0]) * scene.height - h, 0) / 2
    text.x = scene.width / 2 + rng.uniform(-free_x, free_x) * 0.97
    text.y = (band[0] + band[1]) / 2 * scene.height + rng.uniform(-free_y, free_y) * 0.97
    scene.texts.append(text)
    return text


def outline(shape: Shape) -> list[tuple[float, float]]:
    """Corners of a shape other than a circle, as the renderers agree on them."""
    corners = {
        "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
        "triangle": [(math.sin(a), -math.cos(a)) for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)],
        "diamond": [(0, -1.0), (0.68, 0), (0, 1.0), (-0.68, 0)],
        "star": [((1.0, 0.42)[i % 2] * math.sin(i * math.pi / 5), -(1.0, 0.42)[i % 2] * math.cos(i * math.pi / 5)) for i in range(10)],
        "cross": [(-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3), (0.3, 0.95), (-0.3, 0.95),
                  (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3)],
    }[shape.kind]
    c, s = math.cos(shape.angle), math.sin(shape.angle)
    return [(shape.x + shape.radius * (c * x - s * y), shape.y + shape.radius * (s * x + c * y)) for x, y in corners]


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """The scene as an RGB picture of its own size. Shapes are drawn at three times the size, then reduced."""
    w, h = scene.width, scene.height
    to_bytes = lambda rgb: tuple(round(255 * c) for c in rgb)
    image = Image.new("RGB", (w, h), to_bytes(scene.background[0]))
    if scene.background[0] != scene.background[1]:
        c, s = math.cos(scene.background_angle), math.sin(scene.background_angle)
        half = (abs(c) * w + abs(s) * h) / 2
        side = max(w, h) * 2
        ramp = Image.linear_gradient("L").resize((side, max(2, int(2 * half)))).rotate(90 - math.degrees(scene.background_angle), expand=True)
        left, top = (ramp.width - w) // 2, (ramp.height - h) // 2
        image.paste(Image.new("RGB", (w, h), to_bytes(scene.background[1])), mask=ramp.crop((left, top, left + w, top + h)))
    for shape in scene.shapes:
        big = Image.new("L", (3 * w, 3 * h), 0)
        pen = ImageDraw.Draw(big)
        if shape.kind == "circle":
            r = shape.radius
            pen.ellipse([3 * (shape.x - r), 3 * (shape.y - r), 3 * (shape.x + r), 3 * (shape.y + r)], fill=255)
        else:
            pen.polygon([(3 * x, 3 * y) for x, y in outline(shape)], fill=255)
        image.paste(Image.new("RGB", (w, h), to_bytes(shape.rgb)), mask=big.resize((w, h), Image.Resampling.BOX))
    for text in scene.texts:
        layer = Image.new("L", (w, h), 0)
        ImageDraw.Draw(layer).text((text.x, text.y), text.string, fill=255, anchor="mm", font=load_font(text.font, text.size))
        if text.angle:
            layer = layer.rotate(-math.degrees(text.angle), Image.Resampling.BICUBIC, center=(text.x, text.y))
        image.paste(Image.new("RGB", (w, h), to_bytes(text.rgb)), mask=layer)
    if scene.noise:
        grain = np.random.default_rng(rng.getrandbits(32)).normal(0, 255 * scene.noise, (h, w, 3))
        image = Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype("uint8"))
    return image
