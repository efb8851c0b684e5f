"""Loads an FP8 directory in Transformers and checks what it makes of every quantized tensor.

    build/venv/bin/python tools/goldens_quantize/check_transformers.py DIR [--source BF16_DIR] [--prompt TEXT]

Checked: no weight is missing or left over, but K and V of layers that share another layer's, which Transformers does not
build; every dequantized weight is bf16(code * scale), the value that Jewel multiplies with, rounded once to BF16. With
--source: distance of the logits of one prompt to the BF16 model's in FP32. Exit code 1 when something differs.
"""

import argparse
import sys

import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--source")
    parser.add_argument("--prompt", default="Who are you?")
    args = parser.parse_args()

    model, info = AutoModelForImageTextToText.from_pretrained(args.directory, dtype=torch.bfloat16, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(args.directory)
    inputs = tokenizer.apply_chat_template([{"role": "user", "content": args.prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1].float()  # the first call decompresses
    shared = ("k_proj", "v_proj", "k_norm")
    missing = [name for name in info["missing_keys"] if "lm_head" not in name]
    unexpected = [name for name in info["unexpected_keys"] if not any(part in name for part in shared)]
    print(f"missing {missing}, unexpected {unexpected}")

    state = model.state_dict()
    compared = wrong = 0
    with safe_open(f"{args.directory}/model.safetensors", "pt") as file:
        for name in file.keys():
            if file.get_slice(name).get_dtype() != "F8_E4M3" or name not in state:
                continue
            wanted = (file.get_tensor(name).float() * file.get_tensor(name + "_scale").float()).bfloat16()
            found = state[name]
            compared += 1
            if found.dtype != torch.bfloat16 or not torch.equal(found.view(torch.int16), wanted.view(torch.int16)):
                wrong += 1
                print(f"differs: {name} ({found.dtype})")
    print(f"{compared} quantized tensors compared, {wrong} differ")

    if args.source:
        source = AutoModelForImageTextToText.from_pretrained(args.source, dtype=torch.float32)
        with torch.no_grad():
            reference = source(**inputs).logits[0, -1]
        print(f"logits: relative L2 distance to the BF16 source in FP32 {(logits - reference).norm() / reference.norm():.5f}")
    sys.exit(1 if missing or unexpected or wrong or compared == 0 else 0)


if __name__ == "__main__":
    main()
