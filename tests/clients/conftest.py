"""The official clients against `jewel serve models/jewel-demo`. One server serves the whole session; tests that need
other flags start their own. Clients never retry: a retry would hide what the first answer was."""

import base64
import itertools

import openai
import pytest
from server import ROOT, Server

MODEL = "jewel-demo"


@pytest.fixture(scope="session")
def server():
    with Server() as running:
        yield running


@pytest.fixture(scope="session")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture(scope="session")
def picture():
    """A picture of models/examples as a data URL."""
    return lambda name: "data:image/png;base64," + base64.b64encode((ROOT / "models/examples" / name).read_bytes()).decode()


def user(text: str, *image_urls: str) -> list[dict]:
    """A user's message, with pictures before the text."""
    if not image_urls:
        return [{"role": "user", "content": text}]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in image_urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def tool(name: str, description: str, **types: str) -> dict:
    """A function tool whose parameters are all required."""
    properties = {parameter: {"type": type_} for parameter, type_ in types.items()}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": {
        "type": "object", "properties": properties, "required": list(types), "additionalProperties": False}}}


WEATHER = tool("get_weather", "Get the weather in a city", city="string")
ADD = tool("add", "Add two numbers", a="integer", b="integer")
# Trained sentences: greedy decoding answers them word for word.
WHO = user("Who are you?")
WHO_ANSWER = "I am Jewel's demo model, a tiny Gemma 4 that was trained on drawn pictures."
# Seconds of text, where an answer takes milliseconds and may come as one piece: what waits for the connection is sent
# together. (With ignore_eos the model would say its end over and over, which is no text.)
ON_AND_ON = {"min_tokens": 8000}
ENDLESS = {"max_tokens": 8000, "extra_body": ON_AND_ON}


def comes_while_it_is_written(server, pieces) -> None:
    """Five pieces of text come, and the request that makes them is still running then."""
    assert len(list(itertools.islice(pieces, 5))) == 5
    server.wait_for("vllm:num_requests_running", 1)
