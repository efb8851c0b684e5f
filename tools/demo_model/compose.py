"""Draws a batch of scenes on the GPU: the same Scene that scenes.draw renders, thousands a second.

Workers pack scenes into arrays (`pack`); `compose` turns them into patches as the model takes them, and into a label
for every patch (which letter or shape covers its centre) for the auxiliary loss. Text arrives as one grey mask per
scene, rendered by FreeType near its final size, and is turned, scaled and coloured here.
"""

import math
import string

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from dialogues import MAX_SHAPES
from scenes import COLOURS, KINDS, Scene, load_font

MASK_W, MASK_H, MASK_FONT, COLUMN = 448, 96, 58, 4
CHARACTERS = string.ascii_letters + string.digits + "."
COLOUR_NAMES = tuple(COLOURS)
CLASSES = 1 + len(CHARACTERS) + len(KINDS) * len(COLOUR_NAMES)  # 0 is background


def pack(batch: list[Scene]) -> dict[str, np.ndarray]:
    n = len(batch)
    out = {
        "ground": np.zeros((n, 8), np.float32),  # two colours, angle, noise
        "shape": np.zeros((n, MAX_SHAPES, 8), np.float32),  # x, y, radius, cos, sin, rgb
        "kind": np.full((n, MAX_SHAPES), -1, np.int32),
        "shape_class": np.zeros((n, MAX_SHAPES), np.int32),
        "mask": np.zeros((n, MASK_H, MASK_W), np.uint8),
        "text": np.zeros((n, 9), np.float32),  # x, y, mask pixels per canvas pixel, cos, sin, rgb, half height in mask pixels
        "columns": np.zeros((n, MASK_W // COLUMN), np.uint8),  # class of the letter in each mask column
    }
    for i, scene in enumerate(batch):
        out["ground"][i] = (*scene.background[0], *scene.background[1], scene.background_angle, scene.noise)
        for j, s in enumerate(scene.shapes):
            out["shape"][i, j] = (s.x, s.y, s.radius, math.cos(s.angle), math.sin(s.angle), *s.rgb)
            out["kind"][i, j] = KINDS.index(s.kind)
            out["shape_class"][i, j] = 1 + len(CHARACTERS) + KINDS.index(s.kind) * len(COLOUR_NAMES) + COLOUR_NAMES.index(s.colour)
        for text in scene.texts[:1]:
            size = min(text.size, MASK_FONT)
            font = load_font(text.font, size)
            width = font.getlength(text.string)
            if width > MASK_W - 8:
                size = int(size * (MASK_W - 8) / width)
                font = load_font(text.font, size)
                width = font.getlength(text.string)
            canvas = Image.new("L", (MASK_W, MASK_H), 0)
            ImageDraw.Draw(canvas).text((MASK_W / 2, MASK_H / 2), text.string, fill=255, anchor="mm", font=font)
            out["mask"][i] = np.asarray(canvas)
            out["text"][i] = (text.x, text.y, size / text.size, math.cos(text.angle), math.sin(text.angle), *text.rgb, 0.42 * size)
            edges = [MASK_W / 2 - width / 2 + font.getlength(text.string[:k]) for k in range(len(text.string) + 1)]
            for k, character in enumerate(text.string):
                out["columns"][i, round(edges[k] / COLUMN) : round(edges[k + 1] / COLUMN)] = 1 + CHARACTERS.index(character)
    return out


def coverage(kind, x, y, r):
    """How far outside a shape (in pixels, negative inside) a point is; x and y in the shape's own frame, of radius 1."""
    ax, ay, rho = x.abs(), y.abs(), (x * x + y * y).sqrt()
    circle = rho - 1.0
    square = torch.maximum(ax, ay) - 0.8
    triangle = torch.maximum(y, 0.8660254 * ax - 0.5 * y) - 0.5
    sector = torch.atan2(x, -y).abs()
    sector = (torch.remainder(sector + math.pi / 5, 2 * math.pi / 5) - math.pi / 5).abs()
    star = (rho * torch.cos(sector) - 1.0) * 0.35026 + rho * torch.sin(sector) * 0.93665
    diamond = (ax / 0.68 + ay - 1.0) * 0.56231
    cross = torch.minimum(torch.maximum(ax - 0.3, ay - 0.95), torch.maximum(ax - 0.95, ay - 0.3))
    d = torch.where(kind == 0, circle, torch.where(kind == 1, square, torch.where(kind == 2, triangle,
        torch.where(kind == 3, star, torch.where(kind == 4, diamond, cross)))))
    return d * r


def text_frame(text, x, y):
    """Canvas coordinates to mask coordinates; the text's centre is the mask's."""
    dx, dy = x - text[:, 0, None, None], y - text[:, 1, None, None]
    scale, c, s = (text[:, k, None, None] for k in (2, 3, 4))
    return MASK_W / 2 + scale * (c * dx + s * dy), MASK_H / 2 + scale * (c * dy - s * dx)


def paint(ground, shape, kind, mask, text, gain, x, y):
    """-> three colour planes [n, h, w] at canvas points x [1, 1, w], y [1, h, 1]."""
    angle = ground[:, 6, None, None]
    w, h = x.shape[2], y.shape[1]
    along = (torch.cos(angle) * (x - w / 2) + torch.sin(angle) * (y - h / 2)) / (torch.cos(angle).abs() * w + torch.sin(angle).abs() * h) + 0.5
    planes = [ground[:, k, None, None] * (1 - along) + ground[:, 3 + k, None, None] * along for k in range(3)]
    for j in range(MAX_SHAPES):
        px, py, r, c, s = (shape[:, j, k, None, None] for k in range(5))
        dx, dy = (x - px) / (r + 1e-6), (y - py) / (r + 1e-6)
        d = coverage(kind[:, j, None, None], c * dx + s * dy, c * dy - s * dx, r)
        alpha = (0.5 - d).clamp(0, 1) * (kind[:, j, None, None] >= 0)
        planes = [p + alpha * (shape[:, j, 5 + k, None, None] - p) for k, p in enumerate(planes)]
    u, v = text_frame(text, x, y)
    u, v = u - 0.5, v - 0.5
    u0, v0 = u.floor(), v.floor()
    fu, fv = u - u0, v - v0
    flat = mask.flatten(1)
    alpha = 0.0
    for du, dv, weight in ((0, 0, (1 - fu) * (1 - fv)), (1, 0, fu * (1 - fv)), (0, 1, (1 - fu) * fv), (1, 1, fu * fv)):
        uu, vv = (u0 + du).long(), (v0 + dv).long()
        inside = (uu >= 0) & (uu < MASK_W) & (vv >= 0) & (vv < MASK_H)
        index = (vv.clamp(0, MASK_H - 1) * MASK_W + uu.clamp(0, MASK_W - 1)).flatten(1)
        alpha = alpha + weight * inside * flat.gather(1, index).view(uu.shape).float()
    alpha = ((alpha / 255 - 0.5) * gain[:, None, None] + 0.5).clamp(0, 1) * (text[:, 2, None, None] > 0)
    return torch.stack([p + alpha * (text[:, 5 + k, None, None] - p) for k, p in enumerate(planes)], 1)


def patch_labels(scene: dict, width: int, height: int):
    device = scene["mask"].device
    x = (torch.arange(width // 16, device=device) * 16 + 8.0).view(1, 1, -1)
    y = (torch.arange(height // 16, device=device) * 16 + 8.0).view(1, -1, 1)
    n = scene["mask"].shape[0]
    labels = torch.zeros(n, height // 16, width // 16, dtype=torch.long, device=device)
    for j in range(MAX_SHAPES):
        px, py, r, c, s = (scene["shape"][:, j, k, None, None] for k in range(5))
        dx, dy = (x - px) / (r + 1e-6), (y - py) / (r + 1e-6)
        kind = scene["kind"][:, j, None, None]
        inside = (coverage(kind, c * dx + s * dy, c * dy - s * dx, r) < 0) & (kind >= 0)
        labels = torch.where(inside, scene["shape_class"][:, j, None, None].long(), labels)
    u, v = text_frame(scene["text"], x, y)
    column = (u / COLUMN).long()
    inside = (u >= 0) & (u < MASK_W) & ((v - MASK_H / 2).abs() < scene["text"][:, 8, None, None])
    letter = scene["columns"].long().gather(1, column.clamp(0, MASK_W // COLUMN - 1).flatten(1)).view(u.shape)
    return torch.where(inside & (letter > 0), letter, labels).flatten(1)


def compose(scene: dict, width: int, height: int, painter=paint):
    """-> patches [n, patches, 768] in 0..1, labels [n, patches]."""
    device = scene["mask"].device
    x = (torch.arange(width, device=device) + 0.5).view(1, 1, -1)
    y = (torch.arange(height, device=device) + 0.5).view(1, -1, 1)
    n = scene["mask"].shape[0]
    # A mask that is enlarged has soft edges; harden them by chance, since real pictures come both sharp and soft.
    most = 1 / scene["text"][:, 2].clamp(0.1, 1.0)
    gain = 1 + (most - 1) * torch.rand(n, device=device)
    image = painter(scene["ground"], scene["shape"], scene["kind"], scene["mask"], scene["text"], gain, x, y)
    sigma = scene["ground"][:, 7, None, None, None]
    if torch.rand(()) < 0.5:
        image = (image + sigma * torch.randn_like(image)).clamp(0, 1)
    if torch.rand(()) < 0.4:  # a picture that was smaller than the budget and enlarged, or reduced without care
        factor = float(torch.empty(()).uniform_(0.5, 1.0))
        small = F.interpolate(image, size=(int(height * factor), int(width * factor)), mode="bilinear", antialias=True)
        image = F.interpolate(small, size=(height, width), mode="bicubic" if torch.rand(()) < 0.7 else "bilinear").clamp(0, 1)
    else:
        image = (image + sigma * torch.randn_like(image)).clamp(0, 1)
    patches = image.view(n, 3, height // 16, 16, width // 16, 16).permute(0, 2, 4, 3, 5, 1).reshape(n, -1, 768)
    return patches, patch_labels(scene, width, height)
