"""The texts of tests/text/random_text.cc, byte for byte."""

MASK = (1 << 64) - 1


class Random:
    """splitmix64"""

    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, n):
        return self.next() % n


def random_text(fragments, i):
    random = Random(i)
    text = b""
    pieces = 300 if i % 64 == 0 else 1 + random.below(12)
    for _ in range(pieces):
        kind = random.below(16)
        if kind < 10:
            text += fragments[random.below(len(fragments))]
        elif kind < 12:
            c = random.below([0x80, 0x800, 0x10000, 0x110000][random.below(4)])
            text += chr(c - 0x5000 if 0xD800 <= c < 0xE000 else c).encode()
        elif kind < 15:
            fragment = fragments[random.below(len(fragments))]
            text += fragment * (2 + random.below(9))
        else:
            text += bytes(random.below(256) for _ in range(1 + random.below(4)))
    return text


def fnv1a(data, value=0xCBF29CE484222325):
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & MASK
    return value
