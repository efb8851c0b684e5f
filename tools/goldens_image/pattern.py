"""Test pictures that need no storing: drawn from (height, width, seed) by integer arithmetic alone.

tests/image/pattern.h draws the same bytes in C++. Four quarters (noise, smooth gradients, hard edges, faint noise on a
gradient) exercise rounding, clamping on both ends and flat regions at once.
"""

import numpy as np

M32 = np.uint64(0xFFFFFFFF)


def scramble(x):
    """A 32-bit integer hash, element by element (uint64 in, values below 2**32 out)."""
    x = x & M32
    x ^= x >> np.uint64(16)
    x = (x * np.uint64(0x7FEB352D)) & M32
    x ^= x >> np.uint64(15)
    x = (x * np.uint64(0x846CA68B)) & M32
    x ^= x >> np.uint64(16)
    return x


def pattern(height, width, seed):
    """uint8 [height, width, 3]."""
    y = np.arange(height, dtype=np.int64)[:, None, None]
    x = np.arange(width, dtype=np.int64)[None, :, None]
    c = np.arange(3, dtype=np.int64)[None, None, :]
    index = ((y * width + x) * 3 + c).astype(np.uint64)
    noise = (scramble(index + np.uint64(seed * 0x9E3779B1)) & np.uint64(255)).astype(np.int64)
    gradient = (x * 255 // max(width - 1, 1) * (c + 1) + y * 255 // max(height - 1, 1) * (3 - c)) // 4
    edges = np.broadcast_to((((x // (1 + seed % 7)) ^ (y // (1 + seed % 5)) ^ c) & 1) * 255, noise.shape)
    right, low = 2 * x >= width, 2 * y >= height
    top = np.where(right, gradient, noise)
    bottom = np.where(right, (gradient + (noise & 15)) & 255, edges)
    return np.where(low, bottom, top).astype(np.uint8)


def fnv1a(data):
    """FNV-1a 64 over little-endian 64-bit words, the tail padded with zeros, then the length; 16 hex digits. Words rather than
    bytes, because this loop is Python."""
    data = bytes(data)
    words = np.frombuffer(data + b"\0" * (-len(data) % 8), dtype="<u8")
    h = 0xCBF29CE484222325
    for w in words.tolist():
        h = ((h ^ w) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    h = ((h ^ len(data)) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"
