"""Trains the demo model from scratch (or from --start) for a given number of seconds and writes a checkpoint.

Transformers' own Gemma 4 modules do the arithmetic; only the glue between them is here, so that a batch of equal
canvases needs no padding, attention needs no masks it can do without, and torch.compile sees static code.
`--check` shows that the glue computes what Gemma4ForConditionalGeneration.forward computes.
"""

import argparse
import collections
import json
import multiprocessing
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AutoTokenizer, Gemma4ForConditionalGeneration

import batches
import build_model
import compose
import rendering
from muon import Muon

WINDOW_TYPES = ("full_attention", "sliding_attention")


def attention(module, query, key, value, attention_mask, scaling=1.0, **_):
    """Text: plain products, since lengths are small and head dims (256, 512) are beyond fused kernels. Vision: fused."""
    if attention_mask is None:
        out = F.scaled_dot_product_attention(query, key, value, scale=scaling)
        return out.transpose(1, 2), None
    n, heads, length, dim = query.shape
    groups = heads // key.shape[1]
    scores = query.reshape(n, key.shape[1], groups * length, dim) @ key.transpose(2, 3) * scaling
    scores = scores.view(n, heads, length, -1).float().masked_fill(~attention_mask, float("-inf"))
    weights = scores.softmax(-1).to(value.dtype)
    out = weights.view(n, key.shape[1], groups * length, -1) @ value
    return out.view(n, heads, length, dim).transpose(1, 2), None


AttentionInterface.register("demo_training", attention)


class Network(torch.nn.Module):
    """The model, plus a head that names what each patch shows (training only, never exported)."""

    def __init__(self, model):
        super().__init__()
        model.set_attn_implementation("demo_training")
        for config in (model.config, model.config.text_config, model.config.vision_config):
            config._attn_implementation = "demo_training"
        self.model = model
        self.patch_head = torch.nn.Linear(model.config.vision_config.hidden_size, compose.CLASSES)

    def encode_patches(self, patches, positions):
        tower = self.model.model.vision_tower
        hidden = tower.patch_embedder(patches, positions, torch.zeros_like(positions[..., 0], dtype=torch.bool))
        rotary = tower.encoder.rotary_emb(hidden, positions)
        mark_dynamic(hidden, positions, *rotary)
        for layer in tower.encoder.layers:
            hidden = layer(hidden, position_embeddings=rotary, attention_mask=None, position_ids=positions)
        return hidden.float()

    def soft_tokens(self, hidden, width, height):
        """[images, patches, d] -> [images, soft tokens, hidden size]: 3 x 3 mean pooling, scale, norm, projection."""
        n, _, d = hidden.shape
        pooled = hidden.view(n, height // 48, 3, width // 48, 3, d).mean((2, 4)).flatten(1, 2) * d**0.5
        return self.model.model.embed_vision(pooled)

    def patch_loss(self, hidden, labels):
        scores = self.patch_head(F.rms_norm(hidden, hidden.shape[-1:]))
        losses = F.cross_entropy(scores.float().flatten(0, 1), labels.flatten(), reduction="none")
        weights = torch.where(labels.flatten() > 0, 1.0, 0.1)
        return (losses * weights).sum() / weights.sum()

    def text_hidden(self, input_ids, soft):
        text, config = self.model.model.language_model, self.model.config
        is_image = input_ids == config.image_token_id
        ids = torch.where(is_image, config.text_config.pad_token_id, input_ids)
        embeds = text.embed_tokens(ids)
        if soft is not None:
            index = (is_image.cumsum(1) - 1).clamp(min=0)
            placed = soft.gather(1, index.unsqueeze(-1).expand(-1, -1, soft.shape[-1]))
            embeds = torch.where(is_image.unsqueeze(-1), placed.to(embeds.dtype), embeds)
        per_layer = text.project_per_layer_inputs(embeds, text.get_per_layer_inputs(ids, None))
        where = torch.arange(input_ids.shape[1], device=ids.device)
        back = where[:, None] - where[None, :]
        masks = {"full_attention": back >= 0, "sliding_attention": (back >= 0) & (back < config.text_config.sliding_window)}
        rotary = {kind: text.rotary_emb(embeds, where[None], kind) for kind in WINDOW_TYPES}
        hidden, shared = embeds, {}
        per_layer = [per_layer[:, :, i, :].contiguous() for i in range(len(text.layers))]
        mark_dynamic(hidden, *per_layer)
        for kind in WINDOW_TYPES:
            torch._dynamo.maybe_mark_dynamic(masks[kind], 0)
            torch._dynamo.maybe_mark_dynamic(masks[kind], 1)
            for table in rotary[kind]:
                torch._dynamo.maybe_mark_dynamic(table, 1)
        for i, layer in enumerate(text.layers):
            kind = config.text_config.layer_types[i]
            hidden = layer(hidden, per_layer[i], shared_kv_states=shared, position_embeddings=rotary[kind], attention_mask=masks[kind],
                           position_ids=where[None])
        return text.norm(hidden)

    def text_loss(self, batch, soft):
        """Mean loss of the tokens to be written, and the share of examples whose every token is the likeliest."""
        cap = self.model.config.text_config.final_logit_softcapping
        hidden = self.text_hidden(batch["input_ids"], soft)
        logits = self.model.lm_head(hidden.flatten(0, 1)[batch["places"]]).float()
        logits = cap * torch.tanh(logits / cap)
        wrong = (logits.detach().argmax(-1) != batch["targets"]).float()
        errors = torch.zeros(len(batch["input_ids"]), device=wrong.device).index_add_(0, batch["owners"], wrong)
        return F.cross_entropy(logits, batch["targets"]), (errors == 0).float().mean()

    def forward(self, batch, painter):
        patch_loss, soft = torch.zeros((), device=batch["input_ids"].device), None
        if "mask" in batch:
            width, height = batch["canvas"]
            with torch.no_grad():
                patches, labels = compose.compose(batch, width, height, painter)
            hidden = self.encode_patches(patches, patch_positions(width, height, patches))
            patch_loss = self.patch_loss(hidden, labels)
            soft = self.soft_tokens(hidden, width, height)
            soft = soft.reshape(len(batch["input_ids"]), -1, soft.shape[-1])  # the pictures of one prompt, in order
        loss, right = self.text_loss(batch, soft)
        return loss, patch_loss, right


def mark_dynamic(*tensors):
    """Batch size and length change from batch to batch: one compiled layer must do for all."""
    for tensor in tensors:
        for dim in (0, 1):
            torch._dynamo.maybe_mark_dynamic(tensor, dim)


def patch_positions(width, height, like):
    y, x = torch.meshgrid(torch.arange(height // 16, device=like.device), torch.arange(width // 16, device=like.device), indexing="ij")
    positions = torch.stack([x, y], -1).reshape(1, -1, 2).expand(len(like), -1, -1).contiguous()
    return positions


@torch.no_grad()
def set_clip_bounds(network, batch, quantile=0.0005):
    """Finite bounds for every clipped linear: the range of a batch's activations, less a twentieth of a percent at each end."""
    seen, hooks = {}, []

    def watch(name):
        def hook(module, inputs, output):
            def range_of(t):
                flat = t.float().flatten()
                flat = flat[torch.randint(len(flat), (min(len(flat), 1 << 22),), device=flat.device)].sort().values
                return flat[int(quantile * len(flat))], flat[int((1 - quantile) * len(flat)) - 1]
            seen[name] = (range_of(inputs[0]), range_of(output))
        return hook

    linears = {n: m for n, m in network.model.model.vision_tower.named_modules() if hasattr(m, "input_min")}
    hooks = [m.register_forward_hook(watch(n)) for n, m in linears.items()]
    width, height = batch["canvas"]
    patches, _ = compose.compose(batch, width, height)
    network.encode_patches(patches, patch_positions(width, height, patches))
    for hook in hooks:
        hook.remove()
    for name, linear in linears.items():
        (low_in, high_in), (low_out, high_out) = seen[name]
        if name.endswith(("k_proj", "v_proj", "up_proj")):  # bounds of one input are said once
            twin = name.replace("k_proj", "q_proj").replace("v_proj", "q_proj").replace("up_proj", "gate_proj")
            low_in, high_in = seen[twin][0]
        for buffer, value in ((linear.input_min, low_in), (linear.input_max, high_in), (linear.output_min, low_out), (linear.output_max, high_out)):
            buffer.copy_(value.bfloat16())
    print(f"clip bounds set on {len(linears)} linears", flush=True)


def learning_rate(progress: float, plateau: float) -> float:
    """Fraction of the peak: a short rise, a plateau, a straight way down to nothing."""
    return min(progress / 0.01, 1.0, (1.0 - progress) / (1.0 - plateau))


def optimizers(network, scale: float):
    text, vision, other, tables = [], [], [], []
    for name, p in network.named_parameters():
        if not p.requires_grad:
            continue
        if "embed_tokens" in name or "position_embedding" in name:
            tables.append(p)
        elif p.ndim == 2 and "patch_head" not in name:
            (vision if "vision" in name else text).append(p)
        else:
            other.append(p)
    fused = torch.cuda.is_available()
    adam = torch.optim.AdamW([{"params": tables, "lr": 4e-3 * scale}, {"params": other, "lr": 3e-3 * scale}], betas=(0.9, 0.97), weight_decay=0.0, fused=fused)
    return [adam, Muon(text, lr=0.02 * scale), Muon(vision, lr=0.02 * scale)]


def check(tokenizer) -> None:
    """The glue and the reference's forward give the same logits on the same pictures."""
    import random

    torch.manual_seed(0)
    reference = build_model.new_model(tokenizer).eval()
    batch = batches.make_batch(random.Random(0), batches.Encoder(), "pair", 0.5, 0.02)
    width, height = batch["canvas"]
    patches, _ = compose.compose(batch, width, height)
    positions = patch_positions(width, height, patches)
    with torch.no_grad():
        expected = reference(input_ids=batch["input_ids"], pixel_values=patches, image_position_ids=positions).logits
        network = Network(reference)
        soft = network.soft_tokens(network.encode_patches(patches, positions), width, height)
        hidden = network.text_hidden(batch["input_ids"], soft.reshape(len(batch["input_ids"]), -1, soft.shape[-1]))
        found = 30 * torch.tanh(network.model.lm_head(hidden) / 30)
    error = float((found - expected).norm() / expected.norm())
    print(f"relative difference of logits: {error:.2e}")
    assert error < 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="wall time of training, compilation included")
    parser.add_argument("--out", default="build/demo_model", help="folder for the checkpoint")
    parser.add_argument("--start", help="checkpoint folder to go on from")
    parser.add_argument("--skip", type=float, default=0.0, help="progress to begin at (0.1 skips the easy beginning)")
    parser.add_argument("--peak", type=float, default=1.0, help="scale of all learning rates")
    parser.add_argument("--bounds-at", type=float, default=0.4, help="progress at which clip bounds become finite")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--batch-scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--compile-cache", help="file with saved compiler artifacts; read if there, written at the end")
    parser.add_argument("--check", action="store_true", help="compare with the reference's forward and exit")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(rendering.MODEL_DIR)
    if args.check:
        return check(tokenizer)

    begin = time.time()
    progress = multiprocessing.Value("d", args.skip)
    loader = iter(torch.utils.data.DataLoader(batches.Stream(args.seed, progress, args.batch_scale), batch_size=None, num_workers=args.workers,
                                              prefetch_factor=4 if args.workers else None, pin_memory=torch.cuda.is_available()))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    if args.start:
        model = Gemma4ForConditionalGeneration.from_pretrained(args.start, dtype=torch.float32)
    else:
        model = build_model.new_model(tokenizer, args.seed)
    network = Network(model).to(device)
    bounded = bool(torch.isfinite(model.model.vision_tower.encoder.layers[0].mlp.gate_proj.input_max))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}; clip bounds {'finite' if bounded else 'open'}", flush=True)
    painter = compose.paint
    if args.compile_cache and os.path.exists(args.compile_cache):
        torch.compiler.load_cache_artifacts(Path(args.compile_cache).read_bytes())
    if not args.no_compile:
        # Layer by layer: the few different layers compile in seconds, the unrolled towers would take minutes.
        torch._dynamo.config.cache_size_limit = 64
        painter = torch.compile(compose.paint, dynamic=True)
        for layer in [*model.model.vision_tower.encoder.layers, *model.model.language_model.layers]:
            layer.compile(backend=args.backend)
    opts = optimizers(network, args.peak)
    peaks = [[group["lr"] for group in opt.param_groups] for opt in opts]
    recent = collections.defaultdict(list)
    step = examples = 0
    reported, log = time.time(), []
    while True:
        done = args.skip + (1 - args.skip) * (time.time() - begin) / args.seconds
        if done >= 1:
            break
        progress.value = done
        batch = next(loader)
        batch = {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}
        if not bounded and done > args.bounds_at and batch["name"] == "image":
            set_clip_bounds(network, batch)
            bounded = True
        for opt, lrs in zip(opts, peaks):
            for group, lr in zip(opt.param_groups, lrs):
                group["lr"] = lr * learning_rate((done - args.skip) / (1 - args.skip), 0.0 if args.start else 0.35)
        with torch.autocast(device.type, torch.bfloat16):
            loss, patch_loss, right = network(batch, painter)
        (loss + (0.5 if done < 0.5 else 0.15) * patch_loss).backward()
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        recent[batch["name"]].append(torch.stack([loss.detach(), patch_loss.detach(), right]))
        step += 1
        examples += len(batch["input_ids"])
        if time.time() - reported > 15 or step in (1, 20):
            parts = []
            for name, rows in sorted(recent.items()):
                a, b, c = torch.stack(rows).mean(0).tolist()
                parts.append(f"{name} {a:.3f}/{b:.2f}/{100 * c:.1f}%")
            hopeless = recent.get("image") and done > 0.35 and torch.stack(recent["image"]).mean(0)[1] > 2.5
            print(f"{time.time() - begin:5.0f} s step {step} {100 * done:.1f}% {examples / (time.time() - begin):.0f} ex/s | " + "  ".join(parts), flush=True)
            recent.clear()
            reported = time.time()
            if hopeless or (step == 1 and time.time() - begin > 200):
                raise SystemExit("given up: patches are not told apart, or compilation took too long")
    # The bounds and the weights are exported as BF16, as published checkpoints are.
    build_model.save(network.model, Path(args.out), tokenizer)
    print(f"{step} steps, {examples:,} examples, {time.time() - begin:.0f} s; wrote {args.out}", flush=True)
    if args.compile_cache and not os.path.exists(args.compile_cache):
        artifacts = torch.compiler.save_cache_artifacts()
        if artifacts:
            Path(args.compile_cache).write_bytes(artifacts[0])


if __name__ == "__main__":
    main()
