"""Chat completions through the OpenAI client: what is answered, and in which shape."""

import json
from enum import Enum
from typing import Literal

import pytest
from conftest import ADD, MODEL, WEATHER, WHO, WHO_ANSWER, user
from pydantic import BaseModel, ConfigDict, Field

PARIS = user("What is the weather in Paris?")
NEVER_ENDS = {"1": -100, "9": -100, "16": -100}  # <eos>, <|tool_response>, <turn|> of the demo model's tokenizer


@pytest.fixture
def chat(client):
    def ask(messages, **more):
        return client.chat.completions.create(model=MODEL, messages=messages, **{"temperature": 0, "max_tokens": 120, **more})

    return ask


def stream_of(chunks):
    """What a stream's chunks say, put together: content, reasoning, calls, finish reasons and the last usage."""
    content, reasoning, calls, finish, usage = "", "", {}, [], None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reasoning += getattr(choice.delta, "reasoning", None) or ""
            for piece in choice.delta.tool_calls or []:
                call = calls.setdefault(piece.index, {"id": piece.id, "name": "", "arguments": ""})
                call["name"] += piece.function.name or ""
                call["arguments"] += piece.function.arguments or ""
            finish += [choice.finish_reason] if choice.finish_reason else []
    return content, reasoning, [calls[i] for i in sorted(calls)], finish, usage


def test_answers(chat):
    answer = chat(WHO)
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == WHO_ANSWER
    assert answer.choices[0].finish_reason == "stop"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens > 10


def test_streams_the_same_answer(chat):
    chunks = list(chat(WHO, stream=True, stream_options={"include_usage": True}))
    content, _, _, finish, usage = stream_of(chunks)
    assert content == WHO_ANSWER
    assert finish == ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    whole = chat(WHO).usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.prompt_tokens, whole.completion_tokens)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert all(chunk.usage is None for chunk in chat(WHO, stream=True)), "usage that nobody asked for"


def test_the_streaming_helper(client):
    with client.chat.completions.stream(model=MODEL, messages=WHO, temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds and kinds[-1] == "content.done"
    assert final.choices[0].message.content == WHO_ANSWER


def test_a_conversation_goes_on(chat, picture):
    first = user("What word is in the picture?", picture("word.png"))
    answer = chat(first).choices[0].message
    second = chat([*first, answer.model_dump(exclude_none=True), *user("Spell the word.")])
    assert second.choices[0].message.content == "v-i-o-l-i-n."
    assert second.usage.prompt_tokens_details.cached_tokens > 0, "the second turn begins as the first"


def test_pictures(chat, picture):
    word = chat(user("What word is in the picture?", picture("word.png")))
    assert word.choices[0].message.content == 'The word is "violin".'
    assert word.usage.prompt_tokens_details.image_tokens > 50
    assert chat(user("What number is this?", picture("number.png"))).choices[0].message.content == "The number is 70425."
    two = chat(user("What is in the second picture?", picture("number.png"), picture("word.png")))
    assert "violin" in two.choices[0].message.content
    fine = chat(user("What word is in the picture?", picture("word.png")), extra_body={"mm_processor_kwargs": {"max_soft_tokens": 280}})
    assert "violin" in fine.choices[0].message.content
    assert fine.usage.prompt_tokens_details.image_tokens > word.usage.prompt_tokens_details.image_tokens


@pytest.mark.parametrize("switch", [{"reasoning_effort": "low"}, {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}])
def test_thinks(chat, picture, switch):
    question = user("How many circles are there?", picture("shapes.png"))
    answer = chat(question, **switch)
    message = answer.choices[0].message
    assert message.content == "There are 3 circles."
    assert message.reasoning == message.reasoning_content
    assert message.reasoning.startswith("From left to right I see a red circle, a blue square")
    details = answer.usage.completion_tokens_details
    assert 0 < details.reasoning_tokens < answer.usage.completion_tokens
    content, reasoning, _, finish, _ = stream_of(chat(question, stream=True, **switch))
    assert (content, reasoning, finish) == (message.content, message.reasoning, ["stop"])


def test_does_not_think_unasked(chat):
    assert getattr(chat(WHO).choices[0].message, "reasoning", None) is None
    assert chat(WHO).usage.completion_tokens_details.reasoning_tokens == 0
    brief = chat(WHO, reasoning_effort="high", extra_body={"thinking_token_budget": 3}).choices[0].message
    assert (brief.reasoning, brief.content) == ("The", WHO_ANSWER), "the demo model's tokens are short"


def test_calls_a_tool(chat):
    choice = chat(PARIS, tools=[WEATHER, ADD]).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == ("function", "get_weather", {"city": "Paris"})
    (call,) = chat(user("What is 17 plus 25?"), tools=[WEATHER, ADD]).choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 17, "b": 25})


def test_streams_a_tool_call(chat):
    chunks = list(chat(PARIS, tools=[WEATHER], stream=True))
    content, _, calls, finish, _ = stream_of(chunks)
    assert (content, finish) == ("", ["tool_calls"])
    (call,) = calls
    assert call["id"] and call["name"] == "get_weather"
    assert json.loads(call["arguments"]) == {"city": "Paris"}
    names = [p.function.name for c in chunks for x in c.choices for p in x.delta.tool_calls or [] if p.function.name]
    assert names == ["get_weather"], "a name comes once and whole"


def test_parallel_tool_calls(chat):
    """The demo model calls one tool by itself; kept from ending, it calls again and again."""
    many = {"tools": [WEATHER], "tool_choice": "required", "logit_bias": NEVER_ENDS, "max_tokens": 100}
    calls = chat(PARIS, **many).choices[0].message.tool_calls
    whole = [call for call in calls if call.function.arguments == '{"city":"Paris"}']
    assert len(whole) >= 2
    assert len({call.id for call in calls}) == len(calls)
    _, _, streamed, _, _ = stream_of(chat(PARIS, stream=True, **many))
    assert [(c["name"], c["arguments"]) for c in streamed][:len(whole)] == [(c.function.name, c.function.arguments) for c in whole]
    assert len({c["id"] for c in streamed}) == len(streamed)
    one = chat(PARIS, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False).choices[0]
    assert (len(one.message.tool_calls), one.finish_reason) == (1, "tool_calls")


def test_tool_choice(chat):
    assert chat(PARIS, tools=[WEATHER], tool_choice="none").choices[0].message.tool_calls is None
    forced = chat(WHO, tools=[WEATHER, ADD], tool_choice={"type": "function", "function": {"name": "add"}}, max_tokens=200)
    if forced.choices[0].finish_reason == "tool_calls":
        assert {call.function.name for call in forced.choices[0].message.tool_calls} == {"add"}
        assert {type(v) for v in json.loads(forced.choices[0].message.tool_calls[0].function.arguments).values()} == {int}
    else:  # held to the grammar, the model found no end to a number
        assert forced.choices[0].finish_reason == "length"


def test_tools_loop(chat):
    """The model asks, we run the tool, the model answers with its result."""
    tools = {"get_weather": lambda city: f"sunny, {len(city) * 4} degrees", "add": lambda a, b: str(a + b)}
    for messages, expected in ((PARIS, "The weather in Paris is sunny, 20 degrees."), (user("What is 17 plus 25?"), "The answer is 42.")):
        messages = list(messages)
        for _ in range(3):
            choice = chat(messages, tools=[WEATHER, ADD]).choices[0]
            messages.append(choice.message.model_dump(exclude_none=True))
            if choice.finish_reason != "tool_calls":
                break
            for call in choice.message.tool_calls:
                result = tools[call.function.name](**json.loads(call.function.arguments))
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        assert choice.finish_reason == "stop"
        assert choice.message.content == expected


JSON_TOKENS = 1500  # the demo model was not trained on JSON: it fills the gaps with all the white space it may


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["circle", "square"]
    colour: Colour
    count: int = Field(ge=0, le=9)
    filled: bool


def test_json_schema_with_pydantic(client):
    parsed = client.chat.completions.parse(model=MODEL, messages=WHO, max_tokens=JSON_TOKENS, temperature=0, response_format=Shape)
    shape = parsed.choices[0].message.parsed
    assert isinstance(shape, Shape)
    assert list(json.loads(parsed.choices[0].message.content)) == ["kind", "colour", "count", "filled"]


def test_json_schema_by_hand(chat):
    schema = {"type": "object", "properties": {"numbers": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 3}},
              "required": ["numbers"], "additionalProperties": False}
    format_ = {"type": "json_schema", "json_schema": {"name": "numbers", "strict": True, "schema": schema}}
    for seed in range(3):
        answer = chat(WHO, response_format=format_, temperature=1.5, seed=seed, max_tokens=JSON_TOKENS)
        numbers = json.loads(answer.choices[0].message.content)["numbers"]
        assert 2 <= len(numbers) <= 3 and set(numbers) <= {1, 2}
    content, _, _, finish, _ = stream_of(chat(WHO, response_format=format_, max_tokens=JSON_TOKENS, stream=True))
    assert json.loads(content) and finish == ["stop"]
    choice = chat(WHO, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}).choices[0].message.content
    assert choice in ("yes", "no")
    number = chat(WHO, extra_body={"structured_outputs": {"regex": "[1-9][0-9]{3}"}}).choices[0].message.content
    assert 1000 <= int(number) <= 9999


def test_logprobs(chat):
    answer = chat(WHO, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    for token in tokens:
        assert token.logprob <= 0
        assert bytes(token.bytes).decode(errors="replace") == token.token
        assert [t.logprob for t in token.top_logprobs] == sorted((t.logprob for t in token.top_logprobs), reverse=True)
        assert token.top_logprobs[0].token == token.token, "greedy takes the likeliest"
    assert "".join(token.token for token in tokens).startswith(WHO_ANSWER)
    assert chat(WHO).choices[0].logprobs is None
    streamed = [t.token for c in chat(WHO, logprobs=True, stream=True) for x in c.choices if x.logprobs for t in x.logprobs.content]
    assert streamed == [t.token for t in tokens]


def test_several_choices(chat):
    sampled = {"messages": user("Tell me something"), "n": 3, "temperature": 1.8, "seed": 5, "max_tokens": 12}
    answer = chat(**sampled)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    again = chat(**sampled)
    assert [c.message.content for c in again.choices] == [c.message.content for c in answer.choices]
    finished = {}
    for chunk in chat(WHO, n=3, stream=True):
        for choice in chunk.choices:
            finished[choice.index] = choice.finish_reason or finished.get(choice.index)
    assert finished == {0: "stop", 1: "stop", 2: "stop"}


def test_stops(chat):
    stopped = chat(WHO, stop=["demo"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason, stopped.stop_reason) == ("I am Jewel's ", "stop", "demo")
    kept = chat(WHO, stop="demo", extra_body={"include_stop_str_in_output": True}).choices[0]
    assert kept.message.content == "I am Jewel's demo"
    short = chat(WHO, max_tokens=3)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 3)
    newer = chat(WHO, max_tokens=None, max_completion_tokens=2)
    assert (newer.choices[0].finish_reason, newer.usage.completion_tokens) == ("length", 2)
    ids = chat(WHO, max_tokens=3, extra_body={"return_token_ids": True})
    assert len(ids.choices[0].token_ids) == 3 and len(ids.prompt_token_ids) == ids.usage.prompt_tokens


def test_bias_and_continuation(chat):
    first = chat(WHO, max_tokens=1, extra_body={"return_token_ids": True}).choices[0]
    other = chat(WHO, max_tokens=1, logit_bias={str(first.token_ids[0]): -100}).choices[0]
    assert other.message.content != first.message.content
    begun = [*WHO, {"role": "assistant", "content": "I am Jewel's"}]
    goes_on = chat(begun, extra_body={"continue_final_message": True, "add_generation_prompt": False})
    assert WHO_ANSWER == "I am Jewel's" + goes_on.choices[0].message.content


def test_a_system_message_and_roles(chat):
    for role in ("system", "developer"):
        assert chat([{"role": role, "content": "You are helpful."}, *WHO]).choices[0].message.content
    assert chat([{"role": "user", "content": [{"type": "text", "text": "Who are "}, {"type": "text", "text": "you?"}]}]).choices[0].message.content
