#!/usr/bin/env python3
"""One question, its answer, and what the answer cost."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"), api_key=os.environ.get("OPENAI_API_KEY", "none"))
model = client.models.list().data[0].id

answer = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Who are you?"}],
    temperature=0,
    max_tokens=100,
)
print(answer.choices[0].message.content)
usage = answer.usage
print(f"{usage.prompt_tokens} + {usage.completion_tokens} tokens")
energy = getattr(usage, "energy", None)  # where the machine has a meter
if energy:
    print(f"{energy['joules']} J")
