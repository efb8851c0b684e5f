"""Gemma 4's config.json and tensor list for any layer pattern, in the layout of the published checkpoints."""

from dataclasses import dataclass, field

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass
class Shape:
    """What varies between the models written here. The rest is common to E4B and E2B."""

    hidden_size: int
    intermediate_size: int
    num_key_value_heads: int
    layer_types: list[str]
    num_kv_shared_layers: int
    use_double_wide_mlp: bool
    vocab_size: int = 262144
    vision_layers: int = 16
    audio: bool = False
    # Ids of the multimodal markers and placeholders; moved into the vocabulary when that is smaller than Gemma's.
    ids: dict[str, int] = field(default_factory=dict)

    num_attention_heads = 8
    head_dim = 256
    global_head_dim = 512
    per_layer_width = 256
    sliding_window = 512
    vision_hidden = 768
    vision_intermediate = 3072
    position_embedding_size = 10240

    def __post_init__(self):
        if not self.ids:
            self.ids = {"boi": 255999, "image": 258880, "eoi": 258882, "boa": 256000, "audio": 258881,
                        "eoa": 258883, "video": 258884}
            if self.vocab_size <= max(self.ids.values()):  # the last ids of the small vocabulary, in Gemma's order
                order = sorted(self.ids, key=self.ids.get)
                self.ids = {name: self.vocab_size - 8 + i for i, name in enumerate(order)}

    @property
    def layers(self) -> int:
        return len(self.layer_types)

    @property
    def first_shared(self) -> int:
        return self.layers - self.num_kv_shared_layers

    def layer_head_dim(self, layer: int) -> int:
        return self.global_head_dim if self.layer_types[layer] == FULL else self.head_dim

    def layer_intermediate(self, layer: int) -> int:
        wide = self.use_double_wide_mlp and layer >= self.first_shared
        return self.intermediate_size * (2 if wide else 1)


def pattern(sliding_per_full: int, layers: int) -> list[str]:
    types = [FULL if i % (sliding_per_full + 1) == sliding_per_full else SLIDING for i in range(layers)]
    types[-1] = FULL  # as the reference forces
    return types


def e4b(layers: int = 42, **changes) -> Shape:
    """E4B: 42 layers, 5 sliding to 1 full, the last 18 share K and V. Fewer layers keep 3/7 of them sharing."""
    shared = changes.pop("num_kv_shared_layers", round(layers * 18 / 42))
    types = changes.pop("layer_types", pattern(5, layers))
    return Shape(2560, 10240, 2, types, shared, False, **changes)


def e2b(layers: int = 35, **changes) -> Shape:
    """E2B: 35 layers, 4 sliding to 1 full, the last 20 share K and V and have MLPs twice as wide."""
    shared = changes.pop("num_kv_shared_layers", round(layers * 20 / 35))
    types = changes.pop("layer_types", pattern(4, layers))
    return Shape(1536, 6144, 1, types, shared, True, **changes)


def config_json(s: Shape) -> dict:
    text = {
        "model_type": "gemma4_text", "attention_bias": False, "attention_dropout": 0.0, "attention_k_eq_v": False,
        "bos_token_id": 2, "dtype": "bfloat16", "enable_moe_block": False, "eos_token_id": 1,
        "final_logit_softcapping": 30.0, "global_head_dim": s.global_head_dim, "head_dim": s.head_dim,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": s.hidden_size,
        "hidden_size_per_layer_input": s.per_layer_width, "initializer_range": 0.02,
        "intermediate_size": s.intermediate_size, "layer_types": s.layer_types, "max_position_embeddings": 131072,
        "moe_intermediate_size": None, "num_attention_heads": s.num_attention_heads, "num_experts": None,
        "num_global_key_value_heads": None, "num_hidden_layers": s.layers,
        "num_key_value_heads": s.num_key_value_heads, "num_kv_shared_layers": s.num_kv_shared_layers,
        "pad_token_id": 0, "rms_norm_eps": 1e-06,
        "rope_parameters": {
            FULL: {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
            SLIDING: {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "sliding_window": s.sliding_window, "tie_word_embeddings": True, "top_k_experts": None,
        "use_bidirectional_attention": None, "use_cache": True, "use_double_wide_mlp": s.use_double_wide_mlp,
        "vocab_size": s.vocab_size, "vocab_size_per_layer_input": s.vocab_size,
    }
    vision = {
        "model_type": "gemma4_vision", "attention_bias": False, "attention_dropout": 0.0, "dtype": "bfloat16",
        "default_output_length": 280, "head_dim": 64, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": s.vision_hidden, "initializer_range": 0.02, "intermediate_size": s.vision_intermediate,
        "max_position_embeddings": 131072, "num_attention_heads": 12, "num_hidden_layers": s.vision_layers,
        "num_key_value_heads": 12, "patch_size": 16, "pooling_kernel_size": 3,
        "position_embedding_size": s.position_embedding_size, "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 100.0, "rope_type": "axial"}, "standardize": False,
        "use_clipped_linears": True,
    }
    audio = {"model_type": "gemma4_audio", "dtype": "bfloat16"} if s.audio else None
    return {
        "architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "dtype": "bfloat16",
        "audio_config": audio, "audio_token_id": s.ids["audio"], "boa_token_id": s.ids["boa"],
        "boi_token_id": s.ids["boi"], "eoa_token_id": s.ids["eoa"], "eoa_token_index": s.ids["eoa"],
        "eoi_token_id": s.ids["eoi"], "eos_token_id": [1, 106], "image_token_id": s.ids["image"],
        "initializer_range": 0.02, "text_config": text, "tie_word_embeddings": True,
        "video_token_id": s.ids["video"], "vision_config": vision, "vision_soft_tokens_per_image": 280,
    }


def quantizable(name: str) -> bool:
    """The decoder linears that the published FP8 scheme quantizes: attention and MLP, not the PLE linears."""
    return name.startswith("model.language_model.layers.") and (".self_attn." in name or ".mlp." in name) and (
        name.endswith("_proj.weight"))


def unquantized_linears(s: Shape) -> list[str]:
    """Module names of every Linear that stays in BF16: the 'ignore' list of quantization_config."""
    names = []
    for name, shape in tensors(s, inert_kv=False):
        is_linear = name.endswith(".weight") and len(shape) == 2 and "embed_tokens" not in name
        if (is_linear and not quantizable(name)) or name == "model.audio_tower.output_proj.bias":
            names.append(name.removesuffix(".weight").removesuffix(".bias"))
    return sorted(set(names)) + ["lm_head"]


def quantization_config(s: Shape, strategy: str) -> dict:
    weights = {
        "num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, "dynamic": False,
        "group_size": None, "block_structure": None, "actorder": None, "observer": "memoryless_minmax",
        "observer_kwargs": {}, "scale_dtype": None, "zp_dtype": None,
    }
    return {
        "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
        "global_compression_ratio": None, "kv_cache_scheme": None, "sparsity_config": {}, "transform_config": {},
        "version": "0.15.0", "ignore": unquantized_linears(s),
        "config_groups": {"group_0": {"format": "float-quantized", "targets": ["Linear"], "input_activations": None,
                                      "output_activations": None, "weights": weights}},
    }


def tensors(s: Shape, inert_kv: bool = True) -> list[tuple[str, list[int]]]:
    """Every tensor by checkpoint name. inert_kv: with the K and V of sharing layers, as Google's files have them."""
    out: list[tuple[str, list[int]]] = []
    h, p, text = s.hidden_size, s.per_layer_width, "model.language_model."
    out.append((text + "embed_tokens.weight", [s.vocab_size, h]))
    out.append((text + "embed_tokens_per_layer.weight", [s.vocab_size, s.layers * p]))
    out.append((text + "per_layer_model_projection.weight", [s.layers * p, h]))
    out.append((text + "per_layer_projection_norm.weight", [p]))
    out.append((text + "norm.weight", [h]))
    for i in range(s.layers):
        layer, d, mlp = f"{text}layers.{i}.", s.layer_head_dim(i), s.layer_intermediate(i)
        for norm in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                     "post_feedforward_layernorm", "post_per_layer_input_norm"):
            out.append((f"{layer}{norm}.weight", [h]))
        out.append((layer + "layer_scalar", [1]))
        attention, heads = layer + "self_attn.", s.num_attention_heads
        out.append((attention + "q_proj.weight", [heads * d, h]))
        out.append((attention + "o_proj.weight", [h, heads * d]))
        out.append((attention + "q_norm.weight", [d]))
        if inert_kv or i < s.first_shared:
            out.append((attention + "k_proj.weight", [s.num_key_value_heads * d, h]))
            out.append((attention + "v_proj.weight", [s.num_key_value_heads * d, h]))
            out.append((attention + "k_norm.weight", [d]))
        out.append((layer + "mlp.gate_proj.weight", [mlp, h]))
        out.append((layer + "mlp.up_proj.weight", [mlp, h]))
        out.append((layer + "mlp.down_proj.weight", [h, mlp]))
        out.append((layer + "per_layer_input_gate.weight", [p, h]))
        out.append((layer + "per_layer_projection.weight", [h, p]))
    out += _vision_tensors(s)
    if s.audio:
        out += _audio_tensors(s)
    return out


def _clipped(name: str, shape: list[int]) -> list[tuple[str, list[int]]]:
    bounds = [(f"{name}.{bound}", []) for bound in ("input_min", "input_max", "output_min", "output_max")]
    return [(name + ".linear.weight", shape), *bounds]


def _vision_tensors(s: Shape) -> list[tuple[str, list[int]]]:
    h, mlp, tower = s.vision_hidden, s.vision_intermediate, "model.vision_tower."
    out = [(tower + "patch_embedder.input_proj.weight", [h, 768]),
           (tower + "patch_embedder.position_embedding_table", [2, s.position_embedding_size, h])]
    for i in range(s.vision_layers):
        layer = f"{tower}encoder.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                     "post_feedforward_layernorm"):
            out.append((f"{layer}{norm}.weight", [h]))
        for norm in ("q_norm", "k_norm"):
            out.append((f"{layer}self_attn.{norm}.weight", [64]))
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            out += _clipped(f"{layer}self_attn.{projection}", [h, h])
        out += _clipped(layer + "mlp.gate_proj", [mlp, h])
        out += _clipped(layer + "mlp.up_proj", [mlp, h])
        out += _clipped(layer + "mlp.down_proj", [h, mlp])
    out.append(("model.embed_vision.embedding_projection.weight", [s.hidden_size, h]))
    return out


def _audio_tensors(s: Shape) -> list[tuple[str, list[int]]]:
    """Present in published checkpoints; Jewel accepts and does not run them."""
    tower = "model.audio_tower."
    conv = tower + "subsample_conv_projection."
    out = [(conv + "layer0.conv.weight", [128, 1, 3, 3]), (conv + "layer0.norm.weight", [128]),
           (conv + "layer1.conv.weight", [32, 128, 3, 3]), (conv + "layer1.norm.weight", [32]),
           (conv + "input_proj_linear.weight", [1024, 1024])]
    for i in range(12):
        layer = f"{tower}layers.{i}."
        for block in ("feed_forward1", "feed_forward2"):
            out += _clipped(f"{layer}{block}.ffw_layer_1", [4096, 1024])
            out += _clipped(f"{layer}{block}.ffw_layer_2", [1024, 4096])
            out += [(f"{layer}{block}.{norm}.weight", [1024]) for norm in ("pre_layer_norm", "post_layer_norm")]
        for projection in ("q_proj", "k_proj", "v_proj", "post"):
            out += _clipped(f"{layer}self_attn.{projection}", [1024, 1024])
        out += [(layer + "self_attn.relative_k_proj.weight", [1024, 1024]),
                (layer + "self_attn.per_dim_scale", [128])]
        out += [(f"{layer}{norm}.weight", [1024]) for norm in ("norm_pre_attn", "norm_post_attn", "norm_out")]
        out += _clipped(layer + "lconv1d.linear_start", [2048, 1024])
        out += _clipped(layer + "lconv1d.linear_end", [1024, 1024])
        out += [(layer + "lconv1d.depthwise_conv1d.weight", [1024, 1, 5]),
                (layer + "lconv1d.pre_layer_norm.weight", [1024]), (layer + "lconv1d.conv_norm.weight", [1024])]
    out += [(tower + "output_proj.weight", [1536, 1024]), (tower + "output_proj.bias", [1536]),
            ("model.embed_audio.embedding_projection.weight", [s.hidden_size, 1536])]
    return out
