#!/usr/bin/env python3
"""An answer that is an instance of a class: the model can say nothing else."""

import os
from typing import Literal

from openai import OpenAI
from pydantic import BaseModel

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"), api_key=os.environ.get("OPENAI_API_KEY", "none"))
model = client.models.list().data[0].id


class Ticket(BaseModel):
    topic: Literal["bill", "delivery", "other"]
    urgent: bool


answer = client.chat.completions.parse(
    model=model,
    messages=[{"role": "user", "content": "My parcel was due on Monday. Where is it?"}],
    response_format=Ticket,
    temperature=0,
    max_tokens=1500,
)
ticket = answer.choices[0].message.parsed
print(f"topic: {ticket.topic}, urgent: {ticket.urgent}")
