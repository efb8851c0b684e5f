#!/usr/bin/env python3
"""An answer as it comes, its thoughts in brackets before it."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"), api_key=os.environ.get("OPENAI_API_KEY", "none"))
model = client.models.list().data[0].id

stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Who are you?"}],
    temperature=0,
    max_tokens=200,
    reasoning_effort="low",  # leave this line out for an answer without thoughts
    stream=True,
    stream_options={"include_usage": True},
)
thinking = False
for chunk in stream:
    if chunk.usage:  # the last one has no choices
        print(f"\n{chunk.usage.completion_tokens} tokens, {chunk.usage.completion_tokens_details.reasoning_tokens} of them thoughts")
    for choice in chunk.choices:
        thought = getattr(choice.delta, "reasoning", None)
        if thought:
            print(thought if thinking else f"[{thought}", end="", flush=True)
            thinking = True
        if choice.delta.content:
            print(f"]\n{choice.delta.content}" if thinking else choice.delta.content, end="", flush=True)
            thinking = False
