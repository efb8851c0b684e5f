"""The demo model's shape, and a checkpoint with untrained weights. Every feature of E4B is switched on, in small."""

import argparse
import json
from pathlib import Path

import torch

import rendering

LAYERS = 12
# The whole stream is scaled after each layer, as in the published models; fixed, not trained.
LAYER_SCALARS = [0.75, 0.8125, 0.875, 0.90625, 0.9375, 0.9375, 0.953125, 0.96875, 0.96875, 1.0625, 1.03125, 0.875]


def make_config(tokenizer):
    from transformers import Gemma4Config, Gemma4TextConfig, Gemma4VisionConfig

    ids = tokenizer.convert_tokens_to_ids
    text = Gemma4TextConfig(
        vocab_size=len(tokenizer), vocab_size_per_layer_input=len(tokenizer), hidden_size=192, intermediate_size=384, num_hidden_layers=LAYERS,
        num_attention_heads=2, num_key_value_heads=1, head_dim=256, global_head_dim=512, num_kv_shared_layers=6, sliding_window=128,
        hidden_size_per_layer_input=64, final_logit_softcapping=30.0, max_position_embeddings=8192, tie_word_embeddings=True, dtype="bfloat16",
    )
    vision = Gemma4VisionConfig(
        hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=3, num_key_value_heads=3, head_dim=64,
        position_embedding_size=1024, use_clipped_linears=True, dtype="bfloat16",
    )
    return Gemma4Config(
        text_config=text, vision_config=vision, audio_config=None, boi_token_id=ids("<|image>"), eoi_token_id=ids("<image|>"),
        image_token_id=ids("<|image|>"), video_token_id=ids("<|video|>"), boa_token_id=ids("<|audio>"), eoa_token_index=ids("<audio|>"),
        audio_token_id=ids("<|audio|>"), eos_token_id=[ids("<eos>"), ids("<turn|>")], dtype="bfloat16",
    )


def initialise(model, seed: int = 0) -> None:
    """Unit-variance linears; q and k norms small, since attention has scale 1 and would saturate; damped branches."""
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            torch.nn.init.constant_(p, 0.3 if "vision_tower" not in name else 0.5)
        elif "post_" in name and name.endswith("norm.weight"):
            torch.nn.init.constant_(p, 0.5)
        elif name.endswith("norm.weight") or "layernorm" in name:
            torch.nn.init.ones_(p)
        elif "position_embedding_table" in name:
            torch.nn.init.normal_(p, std=0.02)  # rows beyond training's reach stay small
        elif "embed_tokens" in name:
            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5 if "per_layer" not in name else 0.125)
        else:
            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
    for layer, scalar in zip(model.model.language_model.layers, LAYER_SCALARS):
        layer.layer_scalar.fill_(scalar)


def save(model, out: Path, tokenizer) -> None:
    """An ordinary checkpoint folder: weights in BF16, and every JSON file that Transformers needs to run it."""
    from transformers import GenerationConfig

    ids = tokenizer.convert_tokens_to_ids
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        bos_token_id=ids("<bos>"), pad_token_id=ids("<pad>"), eos_token_id=[ids("<eos>"), ids("<turn|>"), ids("<|tool_response>")],
        do_sample=True, temperature=1.0, top_k=64, top_p=0.95,
    )
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    processor = {
        "processor_class": "Gemma4Processor", "image_seq_length": 70, "audio_seq_length": 750, "audio_ms_per_token": 40,
        "image_processor": {"image_processor_type": "Gemma4ImageProcessor", "do_convert_rgb": True, "do_resize": True, "resample": 3, "do_rescale": True,
                            "rescale_factor": 1 / 255, "do_normalize": False, "image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0],
                            "patch_size": 16, "pooling_kernel_size": 3, "max_soft_tokens": 70, "image_seq_length": 70},
        "video_processor": {"video_processor_type": "Gemma4VideoProcessor", "do_sample_frames": True, "num_frames": 32, "max_soft_tokens": 70,
                            "do_normalize": True, "image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0], "resample": 3,
                            "patch_size": 16, "pooling_kernel_size": 3},
        "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
    }
    (out / "processor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def new_model(tokenizer, seed: int = 0):
    from transformers import Gemma4ForConditionalGeneration

    model = Gemma4ForConditionalGeneration(make_config(tokenizer)).float()
    initialise(model, seed)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=str(rendering.MODEL_DIR))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(rendering.MODEL_DIR)
    model = new_model(tokenizer, args.seed)
    count = sum(p.numel() for p in model.parameters())
    vision = sum(p.numel() for p in model.model.vision_tower.parameters())
    print(f"{count:,} parameters, {vision:,} of them in the vision tower")
    with torch.no_grad():  # finite bounds, so that an untrained checkpoint has every feature too
        for name, buffer in model.named_buffers():
            if name.endswith(("input_min", "output_min")):
                buffer.fill_(-4.0)
            elif name.endswith(("input_max", "output_max")):
                buffer.fill_(4.0)
    save(model, Path(args.out), tokenizer)
