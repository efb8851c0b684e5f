"""Captures goldens from Transformers: tests/data/golden/<model>.{json,safetensors}.

    build/venv/bin/python tools/goldens/capture.py e4b e2b demo

docs/goldens.md says what is kept and why. e4b and e2b are random models of those widths with seven layers; their
checkpoint is written to a temporary directory and thrown away, since the test draws the same weights again.
"""

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from transformers import Gemma4ImageProcessor
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "random_checkpoint"))

import cases as golden_cases  # noqa: E402
import random_checkpoint  # noqa: E402
import shapes  # noqa: E402
from random_weights import digest, random_tensor  # noqa: E402
from reference import Key, Reference  # noqa: E402

OUT = ROOT / "tests" / "data" / "golden"
SEED = 20
STAGE_TOKENS = 6  # rows of the forced prompt: attention over a few keys, 17,000 values a token and layer
FORCED_COLUMNS = 128  # of each row of a stage's FP32 output
SAMPLED_COLUMNS = 32
LOGIT_COLUMNS = 1024

# Every situation of the real patterns in seven layers: layers of both types before the ones whose K and V are shared,
# two sharing sliding layers in a row (so that "i - k" is not the rule), a sharing full layer.
S, F = shapes.SLIDING, shapes.FULL
LAYERS = [S, F, S, F, S, S, F]
RANDOM_MODELS = {
    "e4b": (shapes.e4b(7, layer_types=LAYERS, num_kv_shared_layers=3, vocab_size=4096, vision_layers=3), "tensor"),
    "e2b": (shapes.e2b(7, layer_types=LAYERS, num_kv_shared_layers=3, vocab_size=4096, vision_layers=2), "channel"),
}


def sample(values: torch.Tensor, columns: int) -> torch.Tensor:
    """`columns` values of each row: evenly spread, shifted from row to row. tests/golden/golden_file.h does the same."""
    rows, width = values.shape
    if width <= columns:
        return values.float().contiguous()
    step = width // columns
    at = torch.arange(columns) * width // columns
    shift = torch.arange(rows) * 7 % step
    return values.float().gather(1, at[None, :] + shift[:, None]).contiguous()


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def name_of(key: Key) -> str:
    return f"{key[0]}/{key[1]}"


def rows_of(key: Key, case: golden_cases.Case) -> list[int]:
    if key[0] in ("vision.patch_embed", "vision.layer"):
        return case.vision_rows
    if key[0].startswith("vision."):
        return case.soft_rows
    return case.rows


class Capture:
    def __init__(self, directory: Path, config: dict, device: str):
        self.config = config
        self.arrays: dict[str, torch.Tensor] = {}
        self.f32 = Reference(directory, torch.float32, device)
        self.bf16 = Reference(directory, torch.bfloat16, device)

    def forced(self) -> dict:
        """Each stage on the BF16 run's values of the stages before it: these in full, what FP32 makes of them sampled."""
        ids = golden_cases.text_ids(self.config, "stages", STAGE_TOKENS)
        kernel = self.config["vision_config"]["pooling_kernel_size"]
        grid = (2 * kernel, 2 * kernel)
        image = golden_cases.noise_patches(self.config, *grid)
        soft = grid[0] * grid[1] // kernel**2
        error = {}
        for part, arguments in (("vision", (golden_cases.image_ids(self.config, soft), image)), ("text", (ids, None))):
            inputs = self.bf16.run(*arguments)
            outputs = self.f32.run(*arguments, force=inputs)
            for key, values in outputs.items():
                if key[0].startswith("vision.") != (part == "vision"):
                    continue
                if key[0] != "logits":
                    self.arrays[f"forced/{name_of(key)}/input"] = inputs[key].bfloat16().contiguous()
                columns = LOGIT_COLUMNS if key[0] == "logits" else FORCED_COLUMNS
                self.arrays[f"forced/{name_of(key)}/output"] = sample(values, columns)
                error[name_of(key)] = float(f"{distance(inputs[key].float(), values):.3g}")
        self.keep_pixels("forced", image)
        return {"ids": ids, "grid": list(grid), "transformers_bf16_error": error}

    def keep_pixels(self, case: str, image: dict[str, torch.Tensor]) -> None:
        real = int((image["image_position_ids"][0] >= 0).all(-1).sum())
        self.arrays[f"{case}/pixels"] = (image["pixel_values"][0, :real] * 255).round().to(torch.uint8)

    def end_to_end(self, case: golden_cases.Case) -> dict:
        f32 = self.f32.run(case.ids, case.image, case.rows)
        bf16 = self.bf16.run(case.ids, case.image, case.rows)
        record = {"name": case.name, "ids": case.ids, "rows": case.rows, "bf16_distance": {}}
        if case.image is not None:
            record |= {"grid": list(case.grid), "vision_rows": case.vision_rows, "soft_rows": case.soft_rows}
        for key, values in f32.items():
            kept = values if key[0] == "logits" else values[rows_of(key, case)]
            columns = LOGIT_COLUMNS if key[0] in ("logits", "vision.project") else SAMPLED_COLUMNS
            self.arrays[f"{case.name}/{name_of(key)}"] = sample(kept, columns)
            if key[0] in ("logits", "vision.project"):
                other = bf16[key] if key[0] == "logits" else bf16[key][rows_of(key, case)]
                record["bf16_distance"][key[0]] = distance(sample(other, columns), sample(kept, columns))
        return record

    def fp8(self, seed: int, strategy: str, case: golden_cases.Case) -> dict:
        """The text prompt with the decoder linears quantized; FP32 holds float(code) * scale exactly."""
        state = self.f32.model.state_dict()
        for name, tensor in state.items():
            if shapes.quantizable(name):
                bits = random_tensor(name, list(tensor.shape), seed)
                codes, scale = random_checkpoint.quantize(bits, strategy, 2)
                weight = torch.from_numpy(codes).view(torch.float8_e4m3fn).float()
                scale = torch.from_numpy(scale.astype(np.int32) << 16).view(torch.float32)
                tensor.copy_(weight * scale)
        f32 = self.f32.run(case.ids, None, case.rows)
        self.arrays["fp8/logits/-1"] = sample(f32["logits", -1], LOGIT_COLUMNS)
        return {"strategy": strategy, "case": case.name}


def picture_tensors(png: Path, config: dict) -> tuple[dict[str, torch.Tensor], tuple[int, int]]:
    vision = config["vision_config"]
    processor = Gemma4ImageProcessor(max_soft_tokens=70, patch_size=vision["patch_size"],
                                     pooling_kernel_size=vision["pooling_kernel_size"])
    out = processor(Image.open(png), return_tensors="pt")
    positions = out["image_position_ids"][0]
    width, height = (positions.max(0).values + 1).tolist()
    return {"pixel_values": out["pixel_values"], "image_position_ids": out["image_position_ids"]}, (height, width)


def versions(device: str) -> dict:
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
            "transformers": transformers.__version__, "numpy": np.__version__, "device": where}


def capture(model: str, directory: Path, device: str) -> None:
    config = json.loads((directory / "config.json").read_text())
    png = OUT / "picture.png"
    picture, grid = picture_tensors(png, config)
    keeper = Capture(directory, config, device)
    manifest = {"model": model, "versions": versions(device)}
    if model in RANDOM_MODELS:
        shape = RANDOM_MODELS[model][0]
        manifest |= {"seed": SEED, "config": config,
                     "digests": {name: f"{digest(name, dims, SEED):016x}" for name, dims in shapes.tensors(shape, False)}}
    else:
        manifest["model_digest"] = golden_cases.digest_of_file(directory / "model.safetensors")
    manifest["columns"] = {"forced": FORCED_COLUMNS, "sampled": SAMPLED_COLUMNS, "logits": LOGIT_COLUMNS}
    manifest["forced"] = keeper.forced()
    list_of_cases = golden_cases.cases(config, picture, grid)
    manifest["cases"] = []
    for case in list_of_cases:
        record = keeper.end_to_end(case)
        if case.name == "image":
            keeper.keep_pixels("image", case.image)
        if case.name == "picture":
            keeper.keep_pixels("picture", case.image)
            pixels = keeper.arrays.pop("picture/pixels")
            record |= {"file": png.name, "max_soft_tokens": 70,
                       "pixels_digest": golden_cases.digest_of_bytes(pixels.numpy().tobytes())}
        manifest["cases"].append(record)
        print(f"{model} {case.name}: BF16 distance {record['bf16_distance']}", flush=True)
    if model in RANDOM_MODELS:
        manifest["fp8"] = keeper.fp8(SEED, RANDOM_MODELS[model][1], list_of_cases[0])
    save_file(keeper.arrays, OUT / f"{model}.safetensors")
    (OUT / f"{model}.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"{model}: {(OUT / f'{model}.safetensors').stat().st_size:,} bytes", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("models", nargs="+", choices=[*RANDOM_MODELS, "demo"])
    parser.add_argument("--demo", type=Path, default=ROOT / "models" / "jewel-demo")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "picture.png").write_bytes(golden_cases.picture_png())
    for model in args.models:
        if model == "demo":
            capture(model, args.demo, args.device)
            continue
        with tempfile.TemporaryDirectory(dir=ROOT / "build") as temporary:
            random_checkpoint.write_checkpoint(Path(temporary), RANDOM_MODELS[model][0], seed=SEED)
            capture(model, Path(temporary), args.device)


if __name__ == "__main__":
    main()
