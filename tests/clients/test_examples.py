"""The programs of examples/, as a reader would run them."""

import json
import os
import subprocess
import sys

import pytest
from conftest import WHO_ANSWER
from server import ROOT, Server

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def example():
    with Server("--api-key", "right") as server:
        env = {**os.environ, "OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "right"}

        def run(*words: str) -> str:
            command = [sys.executable] if words[0].endswith(".py") else []
            done = subprocess.run([*command, EXAMPLES / words[0], *words[1:]], env=env, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        yield run


def test_curl(example):
    whole, stream = example("curl.sh").split("\n", 1)
    assert json.loads(whole)["choices"][0]["message"]["content"] == WHO_ANSWER
    events = [line.removeprefix("data: ") for line in stream.splitlines() if line]
    assert events.pop() == "[DONE]"
    said = "".join(choice["delta"].get("content", "") for event in events for choice in json.loads(event)["choices"])
    assert said == WHO_ANSWER


def test_chat(example):
    assert example("chat.py").startswith(WHO_ANSWER + "\n")


def test_stream(example):
    thoughts, answer, counts = example("stream.py").strip().split("\n")
    assert thoughts[0] + thoughts[-1] == "[]" and answer == WHO_ANSWER
    assert "of them thoughts" in counts


def test_image(example):
    assert "violin" in example("image.py", str(ROOT / "models/examples/word.png"), "What word is in the picture?")


def test_tools(example):
    assert example("tools.py") == "The weather in Paris is sunny, 20 degrees.\n"


def test_json_schema(example):
    topic, urgent = example("json_schema.py").strip().split(", ")
    assert topic.removeprefix("topic: ") in ("bill", "delivery", "other")
    assert urgent.removeprefix("urgent: ") in ("True", "False")


def test_every_example_is_here():
    tested = {"curl.sh", "chat.py", "stream.py", "image.py", "tools.py", "json_schema.py"}
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")} == tested
