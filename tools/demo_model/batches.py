"""Training batches, made in worker processes: packed scenes for the GPU to draw, token ids and labels.

Every picture of a batch has the same canvas, so nothing is padded but the text. Batches come in kinds, drawn at random
with the weights of KINDS; the curriculum is in the weights alone (short words and plain questions first).
"""

import random
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer

import dialogues
import rendering
import scenes
from compose import pack


@dataclass
class Kind:
    weight: float
    early_weight: float  # in the first tenth of training
    size: int
    budget: int
    draw: object


KINDS = {
    "image": Kind(0.50, 0.86, 384, 70, dialogues.image_example),
    "image140": Kind(0.06, 0.0, 192, 140, dialogues.image_example),
    "image280": Kind(0.06, 0.0, 96, 280, dialogues.image_example),
    "think": Kind(0.10, 0.03, 256, 70, dialogues.thinking_example),
    "turns": Kind(0.05, 0.02, 256, 70, dialogues.two_turns),
    "talk": Kind(0.03, 0.03, 256, 0, lambda rng, split, size, longest: dialogues.talk_example(rng, split)),
    "tool": Kind(0.12, 0.06, 192, 0, lambda rng, split, size, longest: dialogues.tool_example(rng, split)),
    "image_tool": Kind(0.05, 0.0, 160, 70, dialogues.image_tool_example),
    "pair": Kind(0.03, 0.0, 160, 70, dialogues.pair_example),
}


class Encoder:
    def __init__(self):
        self.tokenizer = Tokenizer.from_file(str(rendering.MODEL_DIR / "tokenizer.json"))
        ids = self.tokenizer.token_to_id
        self.boi, self.image, self.eoi = ids("<|image>"), ids("<|image|>"), ids("<image|>")

    def encode(self, example: dialogues.Example, soft_tokens: int) -> tuple[list[int], int]:
        """-> ids of prompt and completion, length of the prompt."""
        ids = []
        for token in self.tokenizer.encode(rendering.prompt(example)).ids:
            ids += [self.boi] + [self.image] * soft_tokens + [self.eoi] if token == self.image else [token]
        return ids + self.tokenizer.encode(rendering.completion(example)).ids, len(ids)


def make_batch(rng: random.Random, encoder: Encoder, name: str, progress: float, scale: float = 1.0) -> dict:
    kind = KINDS[name]
    n = max(2, int(kind.size * scale))
    size = scenes.sample_canvas(rng, kind.budget) if kind.budget else (0, 0)
    soft_tokens = size[0] * size[1] // 2304
    longest = 12 if progress > 0.1 else 3 + int(progress * 90)
    examples, rows = [], []
    while len(examples) < n:
        example = kind.draw(rng, "train", size, longest)
        if bool(example.scenes) != bool(kind.budget):
            continue  # a text-only example among pictures
        examples.append(example)
        rows.append(encoder.encode(example, soft_tokens))
    length = -(-max(len(ids) for ids, _ in rows) // 16) * 16
    input_ids = np.zeros((n, length), np.int64)
    places, targets, owners = [], [], []  # flat positions whose next token is learned, that token, and the row it is in
    for i, (ids, prompt_length) in enumerate(rows):
        input_ids[i, : len(ids)] = ids
        places += range(i * length + prompt_length - 1, i * length + len(ids) - 1)
        targets += ids[prompt_length:]
        owners += [i] * (len(ids) - prompt_length)
    batch = {"input_ids": input_ids, "places": np.array(places), "targets": np.array(targets), "owners": np.array(owners)}
    if kind.budget:
        batch |= pack([scene for example in examples for scene in example.scenes])
    return {"name": name, "canvas": size} | {key: torch.from_numpy(value) for key, value in batch.items()}


class Stream(torch.utils.data.IterableDataset):
    """Endless batches; `progress` is a shared number from 0 to 1 that the trainer moves."""

    def __init__(self, seed: int, progress, scale: float = 1.0):
        self.seed, self.progress, self.scale = seed, progress, scale

    def __iter__(self):
        torch.set_num_threads(1)
        info = torch.utils.data.get_worker_info()
        rng = random.Random(self.seed * 1000 + (info.id if info else 0))
        encoder = Encoder()
        while True:
            progress = self.progress.value
            weights = [k.early_weight if progress < 0.1 else k.weight for k in KINDS.values()]
            name = rng.choices(tuple(KINDS), weights)[0]
            yield make_batch(rng, encoder, name, progress, self.scale)
