"""The prompts and pictures that goldens are captured on: functions of a model's config.json alone."""

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from random_weights import random_values


@dataclass
class Case:
    name: str
    ids: list[int]
    rows: list[int]  # positions whose logits are compared; the chunks of the chunked run end there
    image: dict[str, torch.Tensor] | None = None  # the processor's tensors
    grid: tuple[int, int] | None = None  # patches: height, width
    vision_rows: list[int] = field(default_factory=list)  # patches whose activations are kept
    soft_rows: list[int] = field(default_factory=list)


def text_ids(config: dict, name: str, count: int) -> list[int]:
    """Ids below the multimodal ones, after <bos>."""
    special = [value for key, value in config.items() if key.endswith(("_token_id", "_token_index")) and isinstance(value, int)]
    limit = min(special)
    draws = random_values("prompt." + name, [2, count], 0, 0, count).astype(np.int64)
    return [2] + [int(d * 40503 % limit) for d in draws[: count - 1]]


def noise_patches(config: dict, height: int, width: int) -> dict[str, torch.Tensor]:
    """height x width patches of bytes from the hash, in the processor's form."""
    values = config["vision_config"]["patch_size"] ** 2 * 3
    drawn = random_values("pixels", [2, height * width * values], 0, 0, height * width * values)
    pixels = torch.from_numpy((drawn & 0xFF).astype(np.float32)).view(1, height * width, values) * (1 / 255)
    x, y = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    return {"pixel_values": pixels, "image_position_ids": torch.stack((x, y), -1).view(1, height * width, 2)}


def picture_png() -> bytes:
    """A small smooth picture with edges, of odd sides so that both resize passes work."""
    height, width = 151, 203
    y, x = np.mgrid[0:height, 0:width]
    red = 128 + 100 * np.sin(x / 17.0) * np.cos(y / 29.0)
    green = 255.0 * x / width
    blue = 255.0 * (1 - y / height)
    image = Image.fromarray(np.stack((red, green, blue), -1).round().clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 30, 90, 110), fill=(230, 40, 40), outline=(0, 0, 0))
    draw.rectangle((120, 20, 180, 70), fill=(30, 160, 60))
    draw.polygon([(110, 140), (150, 85), (190, 140)], fill=(250, 220, 0))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _fnv1a64(values) -> str:
    h = 0xCBF29CE484222325
    for value in values:
        h = ((h ^ value) * 0x100000001B3) & ((1 << 64) - 1)
    return f"{h:016x}"


def digest_of_bytes(data: bytes) -> str:
    return _fnv1a64(data)


def digest_of_file(path: Path) -> str:
    """By 64-bit words, as digest_of_words in tests/golden/digest.h."""
    data = path.read_bytes()
    return _fnv1a64(np.frombuffer(data + bytes(-len(data) % 8), dtype="<u8").tolist())


def image_ids(config: dict, soft_tokens: int) -> list[int]:
    return [config["boi_token_id"]] + [config["image_token_id"]] * soft_tokens + [config["eoi_token_id"]]


def cases(config: dict, picture: dict[str, torch.Tensor], picture_grid: tuple[int, int]) -> list[Case]:
    kernel = config["vision_config"]["pooling_kernel_size"]
    window = config["text_config"]["sliding_window"]

    def with_image(name, before, image, grid, after):
        patches, soft = grid[0] * grid[1], grid[0] * grid[1] // kernel**2
        ids = text_ids(config, name, before) + image_ids(config, soft) + text_ids(config, name + ".after", after)[1:]
        rows = [before, before + soft // 2, before + soft + 1, len(ids) - 1]  # <boi>, inside, <eoi>, last
        return Case(name, ids, rows, image, grid, [0, 1, patches // 2, patches - 1], sorted({0, soft // 2, soft - 1}))

    long = window + 88
    grid = (2 * kernel, 3 * kernel)
    return [
        Case("text", text_ids(config, "text", 24), [0, 7, 15, 20, 21, 22, 23]),
        with_image("image", 1, noise_patches(config, *grid), grid, 10),
        with_image("picture", 6, picture, picture_grid, 8),
        Case("long", text_ids(config, "long", long), [63, window - 2, window - 1, window, long - 1]),
    ]
