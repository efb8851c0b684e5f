"""Random weights that need no storage: every value is a pure function of (seed, tensor name, index).

tests/golden/random_weights.h is the same generator in C++ and gives the same bits; the formulas stand there. Everything
up to the last step is integer arithmetic; the last step is at most one float32 product and one float32 sum.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

GAMMA = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
SUM_MEAN = 131070  # of four uniform 16-bit integers: 4 * 65535 / 2
SUM_STD = 37837.0  # sqrt(4 * (65536^2 - 1) / 12), rounded; the rounding is part of the definition
CHUNK = 1 << 16  # values per pass: the 64-bit temporaries stay in the L2 cache


def fnv1a64(text: str) -> int:
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 bits, to nearest, ties to even. Finite values only."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def bf16_floats(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def round_bf16(value: float) -> np.float32:
    return bf16_floats(bf16_bits(np.array([value], dtype=np.float64).astype(np.float32)))[0]


@dataclass(frozen=True)
class Rule:
    kind: str  # "gaussian": mean, std. "uniform": mean is the lower end, std the width
    mean: float
    std: float


def clip_bound(name: str) -> float:
    """Bounds that cut a few per cent: about two deviations of what the linear sees under the other rules."""
    if ".o_proj." in name:
        return 0.75
    if ".down_proj." in name or ".ffw_layer_2." in name or ".linear_end." in name:
        return 1.0
    return 2.0


def rule_of(name: str, shape: list[int]) -> Rule:
    stem = name.removesuffix(".weight")
    last = stem.rsplit(".", 1)[-1]
    fan_in = math.prod(shape[1:]) if len(shape) >= 2 else 1
    if last == "layer_scalar":
        return Rule("uniform", 0.3, 0.6)
    if last in ("input_min", "output_min"):
        return Rule("uniform", -1.1 * clip_bound(name), 0.2 * clip_bound(name))
    if last in ("input_max", "output_max"):
        return Rule("uniform", 0.9 * clip_bound(name), 0.2 * clip_bound(name))
    if last in ("q_norm", "k_norm"):
        return Rule("gaussian", 0.5, 0.05) if "vision_tower" in name else Rule("gaussian", 0.3, 0.03)
    if stem.endswith("language_model.norm") or stem == "model.norm":
        return Rule("gaussian", 3.0, 0.3)
    if last == "embed_tokens" or last == "embedding_projection":
        return Rule("gaussian", 0.0, 2.0 / math.sqrt(fan_in))
    if last == "embed_tokens_per_layer":
        return Rule("gaussian", 0.0, 0.0625)
    if last == "position_embedding_table":
        return Rule("gaussian", 0.0, 0.5)
    if last == "input_proj":
        return Rule("gaussian", 0.0, 2.0 / math.sqrt(fan_in))
    if len(shape) >= 2:
        return Rule("gaussian", 0.0, 1.0 / math.sqrt(fan_in))
    if last in ("per_dim_scale", "bias"):
        return Rule("gaussian", 0.0, 0.1)
    return Rule("gaussian", 1.0, 0.1)


def seed_name(name: str) -> str:
    """q, k and v of a clipped attention share their input bounds, as do gate and up: published checkpoints do so."""
    if name.endswith((".input_min", ".input_max")):
        for member, first in ((".k_proj.", ".q_proj."), (".v_proj.", ".q_proj."), (".up_proj.", ".gate_proj.")):
            name = name.replace(member, first)
    return name


def random_values(name: str, shape: list[int], seed: int, begin: int = 0, count: int | None = None) -> np.ndarray:
    """Values [begin, begin + count) of the flat tensor as bfloat16 bits (uint16)."""
    total = math.prod(shape)
    count = total - begin if count is None else count
    rule = rule_of(name, shape)
    state = mix((fnv1a64(seed_name(name)) + seed * GAMMA) & MASK)
    out = np.empty(count, dtype=np.uint16)
    for at in range(0, count, CHUNK):
        n = min(CHUNK, count - at)
        _fill(out[at : at + n], state, begin + at, rule)
    return out


def _fill(out: np.ndarray, state: int, begin: int, rule: Rule) -> None:
    z = np.arange(begin + 1, begin + 1 + len(out), dtype=np.uint64)
    t = np.empty_like(z)
    z *= np.uint64(GAMMA)
    z += np.uint64(state)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        np.right_shift(z, np.uint64(shift), out=t)
        z ^= t
        z *= np.uint64(factor)
    np.right_shift(z, np.uint64(31), out=t)
    z ^= t
    if rule.kind == "uniform":
        u = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        out[:] = bf16_bits(np.float32(rule.mean) + u * np.float32(rule.std))
        return
    # Two 16-bit sums at once in the halves of a word, then the halves.
    lanes = np.uint64(0x0000FFFF0000FFFF)
    np.right_shift(z, np.uint64(16), out=t)
    t &= lanes
    z &= lanes
    z += t
    halves = z.view(np.int32)
    sums = halves[0::2] + halves[1::2]
    sums -= np.int32(SUM_MEAN)
    values = sums.astype(np.float32)
    values *= round_bf16(rule.std / SUM_STD)
    if rule.mean:
        values += np.float32(rule.mean)
    bits = values.view(np.uint32)
    odd = bits >> np.uint32(16)
    odd &= np.uint32(1)
    bits += odd
    bits += np.uint32(0x7FFF)
    bits >>= np.uint32(16)
    out[:] = bits


def random_tensor(name: str, shape: list[int], seed: int, threads: int = 2) -> np.ndarray:
    """The whole tensor, drawn by several threads (numpy releases the interpreter lock)."""
    total = math.prod(shape)
    out = np.empty(total, dtype=np.uint16)
    part = max(CHUNK, -(-total // threads // CHUNK) * CHUNK)

    def draw(begin: int) -> None:
        n = min(part, total - begin)
        out[begin : begin + n] = random_values(name, shape, seed, begin, n)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(draw, range(0, total, part)))
    return out.reshape(shape)


def digest(name: str, shape: list[int], seed: int) -> int:
    """As random_tensor_digest in C++: FNV-1a over the first and the last 4,096 values, a value at a time."""
    total = math.prod(shape)
    h = 0xCBF29CE484222325
    for begin in (0, max(0, total - 4096)):
        for value in random_values(name, shape, seed, begin, min(total, 4096)).tolist():
            h = ((h ^ value) * 0x100000001B3) & MASK
    return h
