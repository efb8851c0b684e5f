"""/v1/messages through Anthropic's client."""

import anthropic
import pytest
from conftest import MODEL, ON_AND_ON, WHO_ANSWER, comes_while_it_is_written
from server import Server

WHO = [{"role": "user", "content": "Who are you?"}]
PARIS = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {"name": "get_weather", "description": "Get the weather in a city", "input_schema": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}}


def connect(server, **more):
    return anthropic.Anthropic(base_url=server.url, **{"api_key": "any", "max_retries": 0, "timeout": 60, **more})


@pytest.fixture(scope="module")
def claude(server):
    with connect(server) as client:
        yield client


@pytest.fixture
def send(claude):
    return lambda messages, **more: claude.messages.create(
        model=MODEL, messages=messages, **{"extra_body": {"temperature": 0}, "max_tokens": 120, **more})


def test_answers(send):
    answer = send(WHO)
    assert (answer.type, answer.role, answer.model, answer.stop_reason) == ("message", "assistant", MODEL, "end_turn")
    (block,) = answer.content
    assert (block.type, block.text) == ("text", WHO_ANSWER)
    assert answer.usage.output_tokens > 10
    assert send(WHO, max_tokens=3).stop_reason == "max_tokens"
    stopped = send(WHO, stop_sequences=["demo"])
    assert (stopped.stop_reason, stopped.stop_sequence, stopped.content[0].text) == ("stop_sequence", "demo", "I am Jewel's ")


def test_counts_tokens(claude, send):
    counted = claude.messages.count_tokens(model=MODEL, messages=WHO, system="Be brief.").input_tokens
    usage = send(WHO, system="Be brief.").usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_streams(claude):
    with claude.messages.stream(model=MODEL, messages=WHO, max_tokens=120, extra_body={"temperature": 0}) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == WHO_ANSWER
    assert final.content[0].text == WHO_ANSWER and final.stop_reason == "end_turn"
    assert final.usage.output_tokens > 10


def test_goes_through_a_tool_loop(claude, send):
    first = send(PARIS, tools=[WEATHER])
    (call,) = first.content
    assert (first.stop_reason, call.type, call.name, call.input) == ("tool_use", "tool_use", "get_weather", {"city": "Paris"})
    conversation = [*PARIS, {"role": "assistant", "content": first.content}, {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": call.id, "content": "sunny, 21 degrees"}]}]
    assert send(conversation, tools=[WEATHER]).content[0].text == "The weather in Paris is sunny, 21 degrees."
    with claude.messages.stream(model=MODEL, messages=PARIS, tools=[WEATHER], max_tokens=120, extra_body={"temperature": 0}) as stream:
        (streamed,) = stream.get_final_message().content
    assert (streamed.name, streamed.input) == ("get_weather", {"city": "Paris"})
    assert send(PARIS, tools=[WEATHER], tool_choice={"type": "none"}).content[0].type == "text"
    assert send(PARIS, tools=[WEATHER], tool_choice={"type": "tool", "name": "get_weather"}).content[0].name == "get_weather"


def test_thinks(claude, send):
    wish = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000}
    thoughts, text = send(WHO, **wish).content
    assert thoughts.type == "thinking" and thoughts.thinking and thoughts.signature
    assert text.text == WHO_ANSWER
    with claude.messages.stream(model=MODEL, messages=WHO, extra_body={"temperature": 0}, **wish) as stream:
        assert stream.get_final_message().content[0].thinking == thoughts.thinking
    # Thoughts go back into the next turn as they came.
    assert send([*WHO, {"role": "assistant", "content": [thoughts, text]}, *WHO]).content[0].text


def test_pictures(send, picture):
    data = picture("word.png").split(",", 1)[1]
    source = {"type": "base64", "media_type": "image/png", "data": data}
    answer = send([{"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": "What word is in the picture?"}]}])
    assert answer.content[0].text == 'The word is "violin".'


@pytest.mark.parametrize(("more", "part"), [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "king", "content": "x"}]}, "king"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
])
def test_bad_requests(send, more, part):
    messages = more.pop("messages", WHO)
    with pytest.raises(anthropic.BadRequestError) as caught:
        send(messages, **more)
    assert caught.value.body["type"] == "error" and caught.value.body["error"]["type"] == "invalid_request_error"
    assert part in caught.value.message


def test_other_errors(claude, send):
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="claude", messages=WHO, max_tokens=9)
    with Server("--api-key", "right") as server:
        with pytest.raises(anthropic.AuthenticationError):
            connect(server).messages.create(model=MODEL, messages=WHO, max_tokens=9)
        assert connect(server, api_key="right").messages.create(model=MODEL, messages=WHO, max_tokens=9).content


def test_cancel(claude, server):
    with claude.messages.stream(model=MODEL, messages=WHO, max_tokens=8000, extra_body=ON_AND_ON) as stream:
        comes_while_it_is_written(server, stream.text_stream)
    assert server.seconds_until_idle() < 1
