"""Writers for files that Pillow reads but cannot write: PNG of every colour type and depth, interlaced or not, and the rarer BMPs."""

import struct
import zlib

import numpy as np

ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]  # y, x, step y, step x


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def pack_rows(samples, depth):
    """samples [h, w, channels] as the bytes of filter-0 rows."""
    rows = b""
    for row in samples:
        flat = row.reshape(-1).astype(np.uint32)
        if depth == 16:
            body = flat.astype(">u2").tobytes()
        elif depth == 8:
            body = flat.astype(np.uint8).tobytes()
        else:
            bits = "".join(format(v, f"0{depth}b") for v in flat)
            body = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
        rows += b"\0" + body
    return rows


def png(samples, depth, color_type, interlace=False, before=b"", after=b""):
    """A PNG of raw samples [h, w, channels]; `before` and `after` are chunks put before and after the pixels."""
    h, w, _ = samples.shape
    if interlace:
        passes = [samples[y::sy, x::sx] for y, x, sy, sx in ADAM7]
        rows = b"".join(pack_rows(p, depth) for p in passes if p.size)
    else:
        rows = pack_rows(samples, depth)
    header = struct.pack(">IIBBBBB", w, h, depth, color_type, 0, 0, int(interlace))
    data = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def bmp(h, w, depth, rows, palette=b"", compression=0, masks=b"", top_down=False):
    """A BMP with a 40-byte header; `rows` are the bytes after it, bottom row first unless top_down."""
    offset = 14 + 40 + len(masks) + len(palette)
    header = struct.pack(
        "<IiiHHIIiiII", 40, w, -h if top_down else h, 1, depth, compression, len(rows), 2835, 2835, len(palette) // 4, 0
    )
    return b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset) + header + masks + palette + rows


def bmp_rows(values, dtype):
    """[h, w] or [h, w, c] values as padded rows, bottom first."""
    rows = [np.ascontiguousarray(row).astype(dtype).tobytes() for row in values[::-1]]
    return b"".join(row + b"\0" * (-len(row) % 4) for row in rows)


def bmp_core(rgb):
    """The oldest BMP: OS/2's 12-byte header, 24 bits."""
    h, w, _ = rgb.shape
    rows = bmp_rows(rgb[:, :, ::-1], np.uint8)
    return b"BM" + struct.pack("<IHHI", 26 + len(rows), 0, 0, 26) + struct.pack("<IHHHH", 12, w, h, 1, 24) + rows


def rle8(indices):
    """[h, w] palette indices as RLE8, bottom row first: runs, one absolute stretch a row, end marks."""
    out = b""
    for row in indices[::-1].tolist():
        literal, rest = row[:5], row[5:]
        out += bytes([0, len(literal), *literal]) + b"\0" * (len(literal) % 2) if len(literal) >= 3 else b""
        rest = row if len(literal) < 3 else rest
        at = 0
        while at < len(rest):
            run = 1
            while at + run < len(rest) and rest[at + run] == rest[at] and run < 255:
                run += 1
            out += bytes([run, rest[at]])
            at += run
        out += b"\0\0"
    return out + b"\0\1"
