"""From an Example to token ids: the prompt through the model's own chat template, the completion in Gemma's grammar."""

import json
import os
from functools import lru_cache
from pathlib import Path

from dialogues import Example

MODEL_DIR = Path(os.environ.get("DEMO_MODEL_DIR", Path(__file__).resolve().parents[2] / "models" / "jewel-demo"))
QUOTE = '<|"|>'


@lru_cache(None)
def _template():
    from transformers.utils.chat_template_utils import _compile_jinja_template  # compiled once; apply_chat_template adds 10x overhead

    return _compile_jinja_template((MODEL_DIR / "chat_template.jinja").read_text(encoding="utf-8"))


def prompt(example: Example) -> str:
    return _template().render(messages=example.messages, tools=example.tools, add_generation_prompt=True, bos_token="<bos>",
                              eos_token="<eos>", enable_thinking=example.thinking)


def value_text(value) -> str:
    if isinstance(value, str):
        return QUOTE + value + QUOTE
    return json.dumps(value)


def call_text(call: tuple[str, dict]) -> str:
    name, arguments = call
    pairs = ",".join(f"{key}:{value_text(arguments[key])}" for key in sorted(arguments, key=str.lower))
    return f"<|tool_call>call:{name}{{{pairs}}}<tool_call|>"


def completion(example: Example) -> str:
    """What the model is to write, up to and including the token that stops it."""
    text = ""
    if example.thinking:
        # After a tool's result the template has opened the thought already.
        opened = example.messages[-1]["role"] == "tool"
        text = ("" if opened else "<|channel>thought\n") + example.thought + "\n<channel|>"
    if example.call:
        return text + call_text(example.call) + "<|tool_response>"
    return text + example.answer + "<turn|>"
