"""Goldens for decoding and for the whole way from file to patches: tests/data/image/files/*, decode.txt, prepare.txt.

Draws a picture in every format, mode and orientation, keeps the file, and stores the hash of the RGB bytes that
Transformers' load_image gives for it (Pillow, exif_transpose, convert("RGB")); then, for some of them and every budget, the
hashes of what Gemma4ImageProcessor makes of it.

    python tools/goldens_image/make_decode.py
"""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from transformers.image_utils import load_image

sys.path.insert(0, str(Path(__file__).parent))
from pattern import fnv1a, pattern  # noqa: E402
from rawfiles import bmp, bmp_core, bmp_rows, chunk, png, rle8  # noqa: E402

OUT = Path(__file__).resolve().parents[2] / "tests" / "data" / "image"
BUDGETS = (70, 140, 280, 560, 1120)
PREPARED = ["rgb_420.jpg", "orient_6.jpg", "gray.jpg", "rgb8.png", "rgba8.png", "orient_8.png", "lossless.webp", "frame.gif",
            "rgb24.bmp", "scene.jpg"]  # fmt: skip

files = {}


def save(name, image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    files[name] = buffer.getvalue()


def scene(height, width):
    """Something like a photograph: smooth light, a few hard-edged shapes, a little noise."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    base = np.stack([120 + 90 * np.sin(x / 31 + y / 57), 110 + 80 * np.cos(y / 23), 90 + 70 * np.sin((x - y) / 41)], -1)
    base[(x - width * 0.3) ** 2 + (y - height * 0.4) ** 2 < (height * 0.2) ** 2] = (220, 40, 30)
    base[(abs(x - width * 0.7) < width * 0.1) & (abs(y - height * 0.6) < height * 0.25)] = (20, 60, 210)
    noise = pattern(height * 2, width * 2, 5)[:height, :width].astype(np.float64)  # its first quarter is noise
    return (base + (noise - 128) / 16).clip(0, 255).astype(np.uint8)


def tiff(orientation, order=">", kind=3, count=1):
    """The smallest EXIF: one directory with two entries, the second of them the orientation."""
    mark = b"MM\0*" if order == ">" else b"II*\0"
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *([orientation, 0] if kind == 3 else [orientation]))
    entries = struct.pack(order + "HHI", 0x100, 3, 1) + struct.pack(order + "HH", 7, 0)
    entries += struct.pack(order + "HHI", 0x112, kind, count) + value
    return mark + struct.pack(order + "IH", 8, 2) + entries + struct.pack(order + "I", 0)


def draw_jpeg():
    rgb = Image.fromarray(scene(93, 131))
    for name, sampling in (("444", 0), ("422", 1), ("420", 2)):
        for quality in (25, 75, 95):
            save(f"rgb_{name}_q{quality}.jpg", rgb, format="JPEG", quality=quality, subsampling=sampling)
    save("rgb_420.jpg", rgb, format="JPEG", quality=88)
    save("progressive.jpg", rgb, format="JPEG", quality=80, progressive=True)
    save("progressive_444.jpg", rgb, format="JPEG", quality=90, progressive=True, subsampling=0)
    save("restarts.jpg", rgb, format="JPEG", quality=80, restart_marker_blocks=3)
    save("gray.jpg", rgb.convert("L"), format="JPEG", quality=85)
    save("gray_progressive.jpg", rgb.convert("L"), format="JPEG", quality=85, progressive=True)
    save("keep_rgb.jpg", rgb, format="JPEG", quality=85, keep_rgb=True)
    save("noise.jpg", Image.fromarray(pattern(64, 80, 9)), format="JPEG", quality=60)
    save("scene.jpg", Image.fromarray(scene(480, 640)), format="JPEG", quality=70)
    for h, w in ((1, 1), (1, 9), (9, 1), (7, 5), (8, 8), (16, 16), (17, 33), (15, 16)):
        save(f"size_{h}x{w}.jpg", Image.fromarray(pattern(h, w, h + w)), format="JPEG", quality=80)
    cmyk = Image.fromarray(np.dstack([scene(60, 70), 255 - scene(60, 70)[:, :, 1]]), "CMYK")
    save("cmyk.jpg", cmyk, format="JPEG", quality=85)
    # The same coefficients read as YCCK: Adobe's marker says so in its last byte.
    data = bytearray(files["cmyk.jpg"])
    at = data.index(b"Adobe")
    assert data[at + 11] == 0
    data[at + 11] = 2
    files["ycck.jpg"] = bytes(data)
    small = Image.fromarray(scene(41, 53))
    for orientation in range(1, 9):
        save(f"orient_{orientation}.jpg", small, format="JPEG", quality=90, exif=b"Exif\0\0" + tiff(orientation))
    save("orient_little.jpg", small, format="JPEG", quality=90, exif=b"Exif\0\0" + tiff(6, "<"))
    save("orient_long.jpg", small, format="JPEG", quality=90, exif=b"Exif\0\0" + tiff(8, "<", kind=4))
    save("orient_nine.jpg", small, format="JPEG", quality=90, exif=b"Exif\0\0" + tiff(9))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'
    save("orient_xmp.jpg", small, format="JPEG", quality=90, xmp=xmp % 5)
    save("orient_both.jpg", small, format="JPEG", quality=90, xmp=xmp % 5, exif=b"Exif\0\0" + tiff(3))


def draw_png():
    rng = np.random.default_rng(7)
    h, w = 29, 37
    rgb = pattern(h, w, 21)
    alpha = rng.integers(0, 256, (h, w, 1), dtype=np.uint8)
    gray = rgb[:, :, :1]
    deep = rng.integers(0, 65536, (h, w, 4))
    ramp = np.linspace(0, 65535, h * w).astype(np.int64).reshape(h, w, 1)
    palette = chunk(b"PLTE", rng.integers(0, 256, 48, dtype=np.uint8).tobytes())
    indices = rng.integers(0, 16, (h, w, 1))
    for interlace in (False, True):
        tail = "_adam7.png" if interlace else ".png"
        files["rgb8" + tail] = png(rgb, 8, 2, interlace)
        files["rgba8" + tail] = png(np.dstack([rgb, alpha]), 8, 6, interlace)
        files["gray8" + tail] = png(gray, 8, 0, interlace)
        files["graya8" + tail] = png(np.dstack([gray, alpha]), 8, 4, interlace)
        for depth in (1, 2, 4):
            files[f"gray{depth}" + tail] = png(gray >> (8 - depth), depth, 0, interlace)
            files[f"palette{depth}" + tail] = png(indices & ((1 << depth) - 1), depth, 3, interlace, before=palette)
        files["palette8" + tail] = png(indices, 8, 3, interlace, before=palette)
        files["rgb16" + tail] = png(deep[:, :, :3], 16, 2, interlace)
        files["rgba16" + tail] = png(deep, 16, 6, interlace)
        files["graya16" + tail] = png(deep[:, :, :2], 16, 4, interlace)
        files["gray16" + tail] = png(ramp, 16, 0, interlace)
    files["gray16_dark.png"] = png(ramp >> 8, 16, 0)
    files["palette8_trns.png"] = png(indices, 8, 3, before=palette + chunk(b"tRNS", bytes(range(0, 160, 10))))
    files["palette4_trns.png"] = png(indices, 4, 3, before=palette + chunk(b"tRNS", b"\0\x80"))
    files["rgb8_trns.png"] = png(rgb, 8, 2, before=chunk(b"tRNS", struct.pack(">HHH", *rgb[0, 0].tolist())))
    files["gray8_trns.png"] = png(gray, 8, 0, before=chunk(b"tRNS", struct.pack(">H", int(gray[0, 0, 0]))))
    files["gray16_trns.png"] = png(ramp >> 7, 16, 0, before=chunk(b"tRNS", struct.pack(">H", 3)))
    files["rgb16_trns.png"] = png(deep[:, :, :3], 16, 2, before=chunk(b"tRNS", struct.pack(">HHH", *deep[0, 0, :3].tolist())))
    files["gamma.png"] = png(rgb, 8, 2, before=chunk(b"gAMA", struct.pack(">I", 100000)))
    files["transparent.png"] = png(np.dstack([rgb, 0 * alpha]), 8, 6)
    files["one.png"] = png(rgb[:1, :1], 8, 2)
    small = scene(19, 31)
    for orientation in range(1, 9):
        files[f"orient_{orientation}.png"] = png(small, 8, 2, before=chunk(b"eXIf", tiff(orientation)))
    files["orient_after.png"] = png(small, 8, 2, after=chunk(b"eXIf", tiff(6, "<")))
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta><tiff:Orientation>7</tiff:Orientation></x:xmpmeta>'
    files["orient_xmp.png"] = png(small, 8, 2, before=chunk(b"iTXt", xmp))
    frames = [Image.fromarray(scene(20, 24)), Image.fromarray(255 - scene(20, 24))]
    save("animated.png", frames[0], format="PNG", save_all=True, append_images=frames[1:])


def draw_webp():
    rgb = Image.fromarray(scene(93, 131))
    rgba = Image.fromarray(np.dstack([scene(45, 61), pattern(45, 61, 3)[:, :, 0]]))
    save("lossless.webp", rgb, format="WEBP", lossless=True)
    save("lossless_noise.webp", Image.fromarray(pattern(50, 70, 4)), format="WEBP", lossless=True, quality=100)
    save("lossless_rgba.webp", rgba, format="WEBP", lossless=True, exact=True)
    save("lossless_palette.webp", rgb.quantize(12).convert("RGB"), format="WEBP", lossless=True)
    for quality in (5, 50, 80, 100):
        save(f"lossy_q{quality}.webp", rgb, format="WEBP", quality=quality)
    save("lossy_noise.webp", Image.fromarray(pattern(64, 80, 9)), format="WEBP", quality=60)
    save("lossy_rgba.webp", rgba, format="WEBP", quality=75, exact=True)
    for h, w in ((1, 1), (1, 9), (17, 33), (15, 16)):
        save(f"lossy_{h}x{w}.webp", Image.fromarray(scene(h, w)), format="WEBP", quality=75)
    frames = [Image.fromarray(scene(40, 44)), Image.fromarray(255 - scene(40, 44))]
    save("animated.webp", frames[0], format="WEBP", save_all=True, append_images=frames[1:], lossless=True)
    save("animated_lossy.webp", frames[0], format="WEBP", save_all=True, append_images=frames[1:], quality=80)
    small = Image.fromarray(scene(19, 31))
    for orientation in (2, 6, 7):
        save(f"orient_{orientation}.webp", small, format="WEBP", lossless=True, exif=b"Exif\0\0" + tiff(orientation))
    save("orient_xmp.webp", small, format="WEBP", lossless=True, xmp=b'<x tiff:Orientation="8"/>')


def draw_gif():
    indexed = Image.fromarray(scene(45, 61)).quantize(64)
    save("frame.gif", indexed, format="GIF")
    save("plain_rows.gif", indexed, format="GIF", interlace=0)
    save("transparent.gif", indexed, format="GIF", transparency=5)
    save("gray.gif", Image.fromarray(scene(20, 30)).convert("L"), format="GIF")
    save("two_colours.gif", Image.fromarray(scene(20, 30)).convert("1"), format="GIF")
    frames = [indexed, Image.fromarray(255 - scene(45, 61)).quantize(32)]
    save("animated.gif", frames[0], format="GIF", save_all=True, append_images=frames[1:], loop=0)
    # A frame that does not fill its canvas, and one that leaves it.
    for name, transparent in (("offset.gif", False), ("offset_transparent.gif", True)):
        data = bytearray(files["transparent.gif" if transparent else "frame.gif"])
        at = data.index(b"\x2c" + struct.pack("<HHHH", 0, 0, 61, 45))
        data[6:10] = struct.pack("<HH", 80, 60)
        data[at + 1 : at + 5] = struct.pack("<HH", 7, 11)
        files[name] = bytes(data)
    data = bytearray(files["frame.gif"])
    data[6:10] = struct.pack("<HH", 50, 20)
    files["overhang.gif"] = bytes(data)
    # A palette shorter than the indices: 64 colours declared as 16.
    data = bytearray(files["frame.gif"])
    data[10] = (data[10] & 0xF8) | 3
    files["short_palette.gif"] = bytes(data[: 13 + 48] + data[13 + 192 :])


def draw_bmp():
    rgb = scene(23, 31)
    h, w, _ = rgb.shape
    save("rgb24.bmp", Image.fromarray(rgb), format="BMP")
    save("gray8.bmp", Image.fromarray(rgb).convert("L"), format="BMP")
    save("one_bit.bmp", Image.fromarray(rgb).convert("1"), format="BMP")
    save("palette8.bmp", Image.fromarray(rgb).quantize(40), format="BMP")
    save("rgba32.bmp", Image.fromarray(np.dstack([rgb, 255 - rgb[:, :, 0]])), format="BMP")
    bgr = rgb[:, :, ::-1]
    files["top_down.bmp"] = bmp(h, w, 24, bmp_rows(bgr[::-1], np.uint8), top_down=True)
    files["os2.bmp"] = bmp_core(rgb)
    files["bgrx32.bmp"] = bmp(h, w, 32, bmp_rows(np.dstack([bgr, 0 * bgr[:, :, :1]]), np.uint8))
    five = (rgb >> 3).astype(np.uint16)
    files["rgb555.bmp"] = bmp(h, w, 16, bmp_rows(five[:, :, 0] << 10 | five[:, :, 1] << 5 | five[:, :, 2], "<u2"))
    six = (rgb[:, :, 1] >> 2).astype(np.uint16)
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    files["rgb565.bmp"] = bmp(
        h, w, 16, bmp_rows(five[:, :, 0] << 11 | six << 5 | five[:, :, 2], "<u2"), compression=3, masks=masks
    )
    rng = np.random.default_rng(3)
    palette = np.dstack([rng.integers(0, 256, (1, 16, 3)), np.zeros((1, 16, 1))]).astype(np.uint8).tobytes()
    indices = (rgb[:, :, 0] >> 4).astype(np.uint8)
    files["rle8.bmp"] = bmp(h, w, 8, rle8(indices), palette=palette, compression=1)
    even = np.pad(indices, ((0, 0), (0, w % 2)))
    files["palette4.bmp"] = bmp(h, w, 4, bmp_rows(even[:, ::2] << 4 | even[:, 1::2], np.uint8), palette=palette)


def main():
    for draw in (draw_jpeg, draw_png, draw_webp, draw_gif, draw_bmp):
        draw()
    folder = OUT / "files"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    lines = []
    for name, data in sorted(files.items()):
        (folder / name).write_bytes(data)
        rgb = np.array(load_image(str(folder / name)))
        lines.append(f"{name} {rgb.shape[0]} {rgb.shape[1]} {fnv1a(rgb.tobytes())}")
    (OUT / "decode.txt").write_text("\n".join(["# file height width hash of the RGB bytes", *lines]) + "\n")
    print(len(lines), "files,", sum(map(len, files.values())), "bytes")

    from transformers.models.gemma4.image_processing_gemma4 import Gemma4ImageProcessor

    processor = Gemma4ImageProcessor()
    lines = []
    for name in PREPARED:
        image = load_image(str(folder / name))
        for budget in BUDGETS:
            got = processor([image], return_tensors="np", max_soft_tokens=budget)
            tokens = int(got["num_soft_tokens_per_image"][0])
            values, positions = got["pixel_values"][0][: tokens * 9], got["image_position_ids"][0][: tokens * 9]
            grid_w, grid_h = positions.max(axis=0) + 1
            hashes = f"{fnv1a(values.astype('<f4').tobytes())} {fnv1a(positions.astype('<i8').tobytes())}"
            lines.append(f"{name} {budget} {grid_h} {grid_w} {tokens} {hashes}")
    head = "# file budget grid_h grid_w soft_tokens, hashes of pixel_values (float32) and position ids (int64)"
    (OUT / "prepare.txt").write_text("\n".join([head, *lines]) + "\n")
    print(len(lines), "prepared images")


if __name__ == "__main__":
    main()
