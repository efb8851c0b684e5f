"""/v1/responses through OpenAI's client."""

import json

import openai
import pytest
from conftest import MODEL, ON_AND_ON, WHO_ANSWER, comes_while_it_is_written
from pydantic import BaseModel

WHO = "Who are you?"
PARIS = "What is the weather in Paris?"
WEATHER = {"type": "function", "name": "get_weather", "description": "Get the weather in a city", "strict": True, "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}}


@pytest.fixture
def respond(client):
    def ask(what, **more):
        return client.responses.create(model=MODEL, input=what, **{"temperature": 0, "max_output_tokens": 120, **more})

    return ask


def test_answers(respond):
    answer = respond(WHO, instructions=None, metadata={"a": "b"})
    assert (answer.object, answer.status, answer.error) == ("response", "completed", None)
    assert answer.output_text == WHO_ANSWER
    assert answer.metadata == {"a": "b"} and answer.model == MODEL
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    cut = respond(WHO, max_output_tokens=3)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_streams_the_same_response(client, respond):
    events = list(respond(WHO, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == WHO_ANSWER
    assert events[-1].type == "response.completed" and events[-1].response.output_text == WHO_ANSWER
    with client.responses.stream(model=MODEL, input=WHO, temperature=0) as stream:
        for _event in stream:
            pass
        assert stream.get_final_response().output_text == WHO_ANSWER


def test_goes_through_a_tool_loop(respond):
    conversation = [{"role": "user", "content": PARIS}]
    first = respond(conversation, tools=[WEATHER])
    (call,) = first.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "get_weather", {"city": "Paris"})
    conversation += [call.model_dump(exclude_none=True), {"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 21 degrees"}]
    assert respond(conversation, tools=[WEATHER]).output_text == "The weather in Paris is sunny, 21 degrees."
    events = list(respond(PARIS, tools=[WEATHER], stream=True))
    assert json.loads("".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")) == {"city": "Paris"}
    assert [e.name for e in events if e.type == "response.function_call_arguments.done"] == ["get_weather"]


def test_thinks(respond):
    answer = respond(WHO, reasoning={"effort": "low"}, max_output_tokens=200)
    thoughts, message = answer.output
    assert thoughts.type == "reasoning" and thoughts.content[0].text
    assert message.content[0].text == WHO_ANSWER
    assert answer.usage.output_tokens_details.reasoning_tokens > 0
    streamed = respond(WHO, reasoning={"effort": "low"}, max_output_tokens=200, stream=True)
    assert "".join(e.delta for e in streamed if e.type == "response.reasoning_text.delta") == thoughts.content[0].text


class Numbers(BaseModel):
    n: int
    yes: bool


def test_schema(client):
    parsed = client.responses.parse(model=MODEL, input=WHO, text_format=Numbers, temperature=0, max_output_tokens=1500)
    assert isinstance(parsed.output_parsed, Numbers)


def test_pictures_and_logprobs(client, respond, picture):
    question = [{"role": "user", "content": [{"type": "input_image", "detail": "auto", "image_url": picture("word.png")},
                                             {"type": "input_text", "text": "What word is in the picture?"}]}]
    answer = respond(question, include=["message.output_text.logprobs"], top_logprobs=2)
    assert answer.output_text == 'The word is "violin".'
    tokens = answer.output[0].content[0].logprobs
    assert "".join(t.token for t in tokens) == answer.output_text and all(len(t.top_logprobs) == 2 for t in tokens)
    assert client.responses.input_tokens.count(model=MODEL, input=question).input_tokens == answer.usage.input_tokens


def test_says_what_is_not_kept(client, respond):
    with pytest.raises(openai.BadRequestError) as caught:
        respond(WHO, previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id" and "stateless" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(respond(WHO, max_output_tokens=1).id)


def test_cancel(respond, server):
    stream = respond(WHO, max_output_tokens=8000, stream=True, extra_body=ON_AND_ON)
    comes_while_it_is_written(server, (event for event in stream if event.type == "response.output_text.delta"))
    stream.close()
    assert server.seconds_until_idle() < 1
