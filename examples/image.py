#!/usr/bin/env python3
"""image.py PICTURE "QUESTION": a picture of this machine, sent as a data URL. The picture goes before the text: so the
model was trained."""

import base64
import mimetypes
import os
import sys

from openai import OpenAI

if len(sys.argv) != 3:
    sys.exit(__doc__)
picture, question = sys.argv[1:]
with open(picture, "rb") as file:
    data = base64.b64encode(file.read()).decode()
url = f"data:{mimetypes.guess_type(picture)[0] or 'image/png'};base64,{data}"

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"), api_key=os.environ.get("OPENAI_API_KEY", "none"))
model = client.models.list().data[0].id
answer = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": question},
    ]}],
    temperature=0,
    max_tokens=200,
    # How many tokens the picture becomes: 70, 140, 280, 560, 1120, or by its own resolution.
    extra_body={"mm_processor_kwargs": {"max_soft_tokens": "auto"}},
)
print(answer.choices[0].message.content)
print(f"the picture took {answer.usage.prompt_tokens_details.image_tokens} tokens", file=sys.stderr)
