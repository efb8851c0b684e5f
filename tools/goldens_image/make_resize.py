"""Goldens for the size rule, the resize and the patches: tests/data/image/{budget,resize,processor}.txt.

Everything is captured from the reference as it runs by default (Transformers' Gemma4ImageProcessor on PIL images: torchvision
back end, torch's CPU uint8 kernel). The script draws the goldens once per instruction set torch has kernels for (AVX-512, AVX2,
plain) and once with channels-first tensors, and stops if any byte differs: the goldens are the kernel's, not one CPU's.

    python tools/goldens_image/make_resize.py
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from pattern import fnv1a, pattern  # noqa: E402

OUT = Path(__file__).resolve().parents[2] / "tests" / "data" / "image"
BUDGETS = (70, 140, 280, 560, 1120)

# (height, width): odd sizes, extreme aspects, one-pixel sides, sizes where no pass or one pass is needed for some budget.
SIZES = [
    (1, 1), (1, 7), (7, 1), (2, 3), (3, 900), (900, 3), (100, 1000), (1000, 100), (48, 48), (480, 640), (1080, 1920),
    (768, 768), (768, 800), (801, 767), (333, 517), (672, 912), (1536, 48), (2017, 1511), (37, 1999), (1231, 91),
]  # fmt: skip
LARGE = [(3000, 4000, 280), (4000, 3000, 1120), (16000, 40, 560), (40, 16000, 140)]  # (height, width, budget)

# (height, width) -> (height, width), without the processor: single passes both ways, and sizes it never asks for.
DIRECT = [
    (5, 7, 9, 12), (7, 5, 3, 2), (1, 1, 4, 5), (4, 5, 1, 1), (6, 6, 6, 13), (6, 6, 13, 6), (11, 9, 11, 4), (11, 9, 4, 9),
    (2, 2, 3, 3), (1, 16, 1, 5), (16, 1, 5, 1), (3, 3, 48, 48), (257, 131, 129, 131), (257, 131, 257, 67), (64, 64, 63, 65),
    (1, 3000, 1, 7), (3000, 1, 7, 1), (500, 500, 1, 500), (500, 500, 500, 1), (19, 23, 523, 541), (1024, 1024, 512, 512),
    (1024, 1024, 341, 340), (100, 100, 200, 400), (640, 480, 96, 48),
]  # fmt: skip
STORE_WHOLE = 400  # outputs of at most this many bytes are stored themselves


def capture():
    """The lines of resize.txt and processor.txt, under the present ATEN_CPU_CAPABILITY."""
    import torch
    from PIL import Image
    from torchvision.transforms.v2 import functional as tvf
    from transformers.models.gemma4.image_processing_gemma4 import Gemma4ImageProcessor

    torch.set_num_threads(1)
    processor = Gemma4ImageProcessor()

    def resized(image, height, width, contiguous):
        t = torch.from_numpy(image).permute(2, 0, 1)
        t = t.contiguous() if contiguous else t
        mode = tvf.InterpolationMode.BICUBIC
        return tvf.resize(t, [height, width], interpolation=mode, antialias=True).permute(1, 2, 0).contiguous().numpy()

    direct = []
    for seed, (h, w, th, tw) in enumerate(DIRECT):
        out = resized(pattern(h, w, seed), th, tw, contiguous=False)
        if tw > 1:  # torch 2.11 misreads the strides of one-pixel-wide channels-first outputs; the processor never asks for them
            assert (out == resized(pattern(h, w, seed), th, tw, contiguous=True)).all(), (h, w, th, tw)
        whole = out.tobytes().hex() if out.size <= STORE_WHOLE else "-"
        direct.append(f"{h} {w} {seed} {th} {tw} {fnv1a(out.tobytes())} {whole}")

    whole_path = []
    cases = [(h, w, b) for h, w in SIZES for b in BUDGETS] + LARGE
    for seed, (h, w, budget) in enumerate(cases):
        image = pattern(h, w, seed)
        got = processor([Image.fromarray(image)], return_tensors="pt", max_soft_tokens=budget)
        tokens = int(got["num_soft_tokens_per_image"][0])
        n = tokens * 9
        values = got["pixel_values"][0]
        positions = got["image_position_ids"][0]
        assert values.dtype == torch.float32 and values.shape == (9 * budget, 768)
        assert (values[n:] == 0).all() and (positions[n:] == -1).all(), "padding is zero pixels at (-1, -1)"
        values, positions = values[:n].contiguous().numpy(), positions[:n].contiguous().numpy()
        grid_w, grid_h = positions.max(axis=0) + 1
        out = np.round(values * 255).astype(np.uint8).reshape(grid_h, grid_w, 16, 16, 3).transpose(0, 2, 1, 3, 4)
        out = np.ascontiguousarray(out.reshape(grid_h * 16, grid_w * 16, 3))
        # The tensor path of the same processor, whose input is contiguous channels first.
        same = processor([torch.from_numpy(image).permute(2, 0, 1).contiguous()], return_tensors="pt", max_soft_tokens=budget)
        assert (same["pixel_values"] == got["pixel_values"]).all(), (h, w, budget)
        hashes = [fnv1a(out.tobytes()), fnv1a(values.astype("<f4").tobytes()), fnv1a(positions.astype("<i8").tobytes())]
        whole_path.append(f"{h} {w} {seed} {budget} {out.shape[0]} {out.shape[1]} {tokens} {' '.join(hashes)}")
    return {"capability": torch.backends.cpu.get_cpu_capability(), "resize": direct, "processor": whole_path}


def budget_lines():
    """A sweep of the size rule: random sizes on a logarithmic scale, every small size, and every aspect that meets the edge rule."""
    from transformers.models.gemma4.image_processing_gemma4 import get_aspect_ratio_preserving_size

    rng = random.Random(4)
    sizes = [(h, w) for h in range(1, 9) for w in range(1, 9)]
    sizes += [(int(2 ** rng.uniform(0, 14)), int(2 ** rng.uniform(0, 14))) for _ in range(1500)]
    sizes += [(rng.randint(1, 12), int(2 ** rng.uniform(7, 14))) for _ in range(150)]
    sizes += [(int(2 ** rng.uniform(7, 14)), rng.randint(1, 12)) for _ in range(150)]
    lines = []
    for h, w in sizes:
        # The same aspect for several budgets needs no line of its own: five answers beside each other.
        got = [get_aspect_ratio_preserving_size(h, w, 16, 9 * b, 3) for b in BUDGETS]
        lines.append(f"{h} {w} " + " ".join(f"{th} {tw}" for th, tw in got))
    return lines


def main():
    if sys.argv[1:] == ["--capture"]:
        print(json.dumps(capture()))
        return
    runs = []
    for capability in ("default", "avx2", "avx512"):
        env = dict(os.environ, ATEN_CPU_CAPABILITY=capability)
        text = subprocess.run([sys.executable, __file__, "--capture"], env=env, check=True, capture_output=True, text=True).stdout
        runs.append(json.loads(text.splitlines()[-1]))
        print("captured with", runs[-1]["capability"])
    for run in runs[1:]:
        assert run["resize"] == runs[0]["resize"] and run["processor"] == runs[0]["processor"], run["capability"]
    OUT.mkdir(parents=True, exist_ok=True)
    heads = {
        "budget": "# height width, then target height and width for the budgets 70 140 280 560 1120",
        "resize": "# height width seed target_height target_width hash, and the bytes in hex where they are few",
        "processor": "# height width seed budget target_height target_width soft_tokens, hashes of resized bytes, "
        "pixel_values (float32), position ids (int64)",
    }
    bodies = {"budget": budget_lines(), "resize": runs[0]["resize"], "processor": runs[0]["processor"]}
    for name, lines in bodies.items():
        (OUT / f"{name}.txt").write_text("\n".join([heads[name], *lines]) + "\n")
        print(name, len(lines), "lines")


if __name__ == "__main__":
    main()
