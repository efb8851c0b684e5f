#!/usr/bin/env python3
"""tools.py ["QUESTION"]: the model asks for functions, we call them and say what they returned, until it answers."""

import json
import os
import sys

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"), api_key=os.environ.get("OPENAI_API_KEY", "none"))
model = client.models.list().data[0].id


def get_weather(city: str) -> str:
    return f"sunny, {4 * len(city)} degrees"  # a real one would ask somebody


FUNCTIONS = {"get_weather": get_weather}
TOOLS = [{
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}]

messages = [{"role": "user", "content": sys.argv[1] if len(sys.argv) > 1 else "What is the weather in Paris?"}]
for _ in range(5):  # a model may ask again and again
    choice = client.chat.completions.create(model=model, messages=messages, tools=TOOLS, temperature=0, max_tokens=200).choices[0]
    messages.append(choice.message.model_dump(exclude_none=True))
    if choice.finish_reason != "tool_calls":
        print(choice.message.content)
        break
    for call in choice.message.tool_calls:
        result = FUNCTIONS[call.function.name](**json.loads(call.function.arguments))
        print(f"{call.function.name}({call.function.arguments}) = {result}", file=sys.stderr)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
