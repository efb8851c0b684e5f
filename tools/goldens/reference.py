"""Transformers' Gemma 4 with a tap on every stage that Jewel names (src/model/stages.h).

A tap records what a stage computed and, when told to, replaces it in place before anything reads it, so that the next
stage starts from a chosen input. One image at most, one sequence, no cache.
"""

import collections
from pathlib import Path

import torch
from transformers import AttentionInterface, Gemma4ForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

Key = tuple[str, int]  # (stage name, layer; -1 outside layers)

_active: "Reference | None" = None


def _attention(module, query, key, value, attention_mask, **kwargs):
    """sdpa, with q, k, v and the result tapped in the decoder. Tensors come as [1, heads, tokens, head_dim]."""
    decoder = _active is not None and hasattr(module, "is_kv_shared_layer")
    if decoder:
        layer = module.layer_idx
        _active.tap_heads("layer.q", layer, query)
        if not module.is_kv_shared_layer:  # in place: sharing layers read these very tensors
            _active.tap_heads("layer.k", layer, key)
            _active.tap_heads("layer.v", layer, value)
    out, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if decoder:
        out = out.contiguous()
        _active.tap("layer.attention", layer, out.view(1, out.shape[1], -1))
    return out, weights


AttentionInterface.register("tapped_sdpa", _attention)
AttentionMaskInterface.register("tapped_sdpa", sdpa_mask)


class Reference:
    def __init__(self, directory: Path | str, dtype: torch.dtype, device: str = "cpu"):
        self.model, info = Gemma4ForConditionalGeneration.from_pretrained(
            directory, dtype=dtype, attn_implementation="tapped_sdpa", output_loading_info=True)
        assert not info["missing_keys"] and not info["mismatched_keys"], info
        self.model.eval().to(device)
        self.device, self.dtype = device, dtype
        self.recorded: dict[Key, torch.Tensor] = {}
        self.forced: dict[Key, torch.Tensor] = {}
        self._hook()

    def tap(self, stage: str, layer: int, values: torch.Tensor) -> None:
        """values: a live tensor whose last axis is the stage's columns."""
        rows = values.view(-1, values.shape[-1]) if values.is_contiguous() else values.reshape(-1, values.shape[-1])
        self.recorded[stage, layer] = rows.detach().to("cpu", copy=True)
        if (stage, layer) in self.forced:
            values.copy_(self.forced[stage, layer].to(values).view(values.shape))

    def tap_heads(self, stage: str, layer: int, heads: torch.Tensor) -> None:
        """heads [1, heads, tokens, head_dim], seen as [tokens, heads * head_dim]."""
        rows = heads.transpose(1, 2).flatten(2)[0]
        self.recorded[stage, layer] = rows.detach().to("cpu", copy=True)
        if (stage, layer) in self.forced:
            forced = self.forced[stage, layer].to(heads)
            heads.copy_(forced.view(1, forced.shape[0], heads.shape[1], heads.shape[3]).transpose(1, 2))

    def _hook(self) -> None:
        text = self.model.model.language_model

        def after(stage, layer):
            return lambda module, args, output: self.tap(stage, layer, output)

        def before(stage, layer):  # in place, so that the residual, which is the same tensor, follows
            return lambda module, args: self.tap(stage, layer, args[0])

        project = text.project_per_layer_inputs

        def tapped_project(inputs_embeds, per_layer_inputs=None):
            self.tap("embed", -1, inputs_embeds)
            out = project(inputs_embeds, per_layer_inputs)
            self.tap("per_layer_inputs", -1, out.view(1, out.shape[1], -1))
            return out

        text.project_per_layer_inputs = tapped_project
        for i, layer in enumerate(text.layers):
            layer.input_layernorm.register_forward_hook(after("layer.attn_norm", i))
            layer.pre_feedforward_layernorm.register_forward_pre_hook(before("layer.attn_residual", i))
            layer.per_layer_input_gate.register_forward_pre_hook(before("layer.mlp_residual", i))
            layer.register_forward_hook(after("layer.output", i))
        text.norm.register_forward_hook(after("final_norm", -1))
        tower = self.model.model.vision_tower
        tower.patch_embedder.register_forward_hook(after("vision.patch_embed", -1))
        for i, layer in enumerate(tower.encoder.layers):
            layer.register_forward_hook(after("vision.layer", i))
        tower.register_forward_hook(lambda m, a, out: self.tap("vision.pool", -1, out.last_hidden_state))
        self.model.model.embed_vision.register_forward_hook(after("vision.project", -1))

    @torch.no_grad()
    def run(self, ids: list[int], image: dict[str, torch.Tensor] | None = None, rows: list[int] | None = None,
            force: dict[Key, torch.Tensor] | None = None) -> dict[Key, torch.Tensor]:
        """Every stage's values for one sequence; logits of `rows` (all, when None). image: the processor's tensors."""
        global _active
        self.recorded, self.forced, _active = {}, force or {}, self
        inputs = {"input_ids": torch.tensor([ids], device=self.device)}
        if image is not None:
            inputs |= {name: value.to(self.device) for name, value in image.items()}
        keep = torch.arange(len(ids)) if rows is None else torch.tensor(rows)
        logits = self.model(**inputs, use_cache=False, logits_to_keep=keep.to(self.device)).logits
        self.recorded["logits", -1] = logits[0].to("cpu", copy=True)
        _active = None
        if image is not None:  # the processor pads the patch list; Jewel has no padding
            real = int((image["image_position_ids"][0] >= 0).all(-1).sum())
            for key, values in self.recorded.items():
                if key[0] in ("vision.patch_embed", "vision.layer"):
                    self.recorded[key] = values[:real]
        return collections.OrderedDict(self.recorded)
