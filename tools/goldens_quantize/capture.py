"""What the compressed-tensors library makes of BF16 tensors: tests/data/quantize/goldens.json.

    build/venv/bin/python tools/goldens_quantize/capture.py

Each case is a matrix of BF16 bit patterns by a rule that tests/checkpoint/quantize_golden_test.cc repeats; stored are the
library's scales (bits) and the FNV-1a hash of its codes.
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams

OUT = Path(__file__).resolve().parents[2] / "tests/data/quantize/goldens.json"


def splitmix(n: int, seed: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def case(name: str, rows: int, columns: int) -> np.ndarray:
    n = rows * columns
    index = np.arange(n, dtype=np.uint64)
    if name == "zeros":
        bits = np.zeros(n, np.uint64) | ((index & np.uint64(1)) << np.uint64(15))  # +0 and -0
    elif name == "every_finite_pattern":  # subnormals, ties, both signs, up to the largest BF16
        bits = index & np.uint64(0xFFFF)
        bits = np.where((bits & np.uint64(0x7F80)) == 0x7F80, np.uint64(0x3F80), bits)
    elif name == "subnormals":
        bits = (index % np.uint64(0x80)) | ((index & np.uint64(1)) << np.uint64(15))
    elif name == "ties":  # amax 448 makes the scale 1: half-way quotients at every code
        bits = np.uint64(0x3B00) + (index % np.uint64(0x08E1))
        bits[0] = 0x43E0
    else:  # "weights": mantissas at random, exponents of about 2^-12 … 2^-4
        random = splitmix(n, 7)
        bits = (random & np.uint64(0x807F)) | ((np.uint64(115) + (random >> np.uint64(20)) % np.uint64(9)) << np.uint64(7))
    return bits.astype(np.uint16).reshape(rows, columns)


def fnv1a(data: bytes) -> str:
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def main() -> None:
    cases = []
    for name, rows, columns in (("zeros", 4, 64), ("every_finite_pattern", 64, 1024), ("subnormals", 16, 64), ("ties", 36, 64), ("weights", 48, 320)):
        weight = torch.from_numpy(case(name, rows, columns).view(np.int16)).view(torch.bfloat16)
        for strategy in ("tensor", "channel"):
            args = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy=strategy)
            if strategy == "tensor":
                low, high = (x.reshape(1) for x in torch.aminmax(weight))
            else:
                low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
            scale, _ = calculate_qparams(low, high, args)
            codes = quantize(x=weight, scale=scale, zero_point=None, args=args, dtype=torch.float8_e4m3fn)
            cases.append({
                "name": name, "rows": rows, "columns": columns, "strategy": strategy,
                "scale_bits": scale.reshape(-1).view(torch.int16).numpy().view(np.uint16).tolist(),
                "codes_fnv1a": fnv1a(codes.view(torch.uint8).numpy().tobytes()),
            })
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"compressed_tensors": version("compressed-tensors"), "torch": version("torch"), "cases": cases}) + "\n")
    print(f"{len(cases)} cases in {OUT}")


if __name__ == "__main__":
    main()
