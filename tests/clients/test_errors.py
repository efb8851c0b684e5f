"""What the OpenAI client raises, and what becomes of requests that nobody waits for any more."""

import asyncio
import concurrent.futures
import socket
import time

import openai
import pytest
from conftest import ENDLESS, MODEL, WHO, comes_while_it_is_written, user
from server import Server


def ask(client, **more):
    return client.chat.completions.create(**{"model": MODEL, "messages": WHO, "max_tokens": 8, **more})


@pytest.mark.parametrize(("more", "param"), [
    ({"temperature": -1}, "temperature"),
    ({"max_tokens": 10**9}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    ({"messages": user("x", "data:image/png;base64,!!!!")}, "messages[0].content[0].image_url.url"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]}]}, "messages[0].content[0].type"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema"),
    ({"tool_choice": "maybe"}, "tool_choice"),
    ({"n": 0}, "n"),
    ({"extra_body": {"top_k": "many"}}, "top_k"),
])
@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests(client, more, param, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, stream=stream, **more)
    error = caught.value
    assert (error.status_code, error.type, error.param) == (400, "BadRequestError", param)
    assert error.body["message"] and str(error.code) == "400"
    assert error.request_id


def test_a_prompt_that_is_too_long(client):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, messages=user("word " * 20_000), stream=stream)
        assert "limit" in caught.value.message


def test_not_found(client, server):
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="gpt-5")
    assert caught.value.param == "model" and "jewel-demo" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL, input="x")


def test_authentication():
    with Server("--api-key", "one", "two") as server:
        def with_key(key):
            return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)

        with pytest.raises(openai.AuthenticationError) as caught:
            ask(with_key("three"))
        assert caught.value.status_code == 401
        with pytest.raises(openai.AuthenticationError):
            with_key("on").models.list()
        assert ask(with_key("two")).choices[0].message.content


def test_too_large():
    with Server("--max-body-mib", "1") as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
        with pytest.raises(openai.APIStatusError) as caught:
            ask(client, messages=user("x" * 1_100_000))
        assert caught.value.status_code == 413
        assert ask(client).choices


def test_a_full_queue():
    """One runs, one waits, the third is told to come back."""
    with Server("--max-num-seqs", "1", "--max-num-queued-reqs", "1") as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
        running = ask(client, stream=True, **ENDLESS)
        server.wait_for("vllm:num_requests_running", 1)
        # Its first byte comes when it has run, so it is asked by a thread.
        waiting = concurrent.futures.ThreadPoolExecutor(1).submit(ask, client, stream=True, **ENDLESS)
        server.wait_for("vllm:num_requests_waiting", 1)
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client)
        assert caught.value.status_code == 503
        assert int(caught.value.response.headers["retry-after"]) >= 1
        running.close()
        waiting.result(10).close()
        assert server.seconds_until_idle() < 1


def test_cancel_mid_stream(client, server):
    for _ in range(3):
        stream = ask(client, stream=True, **ENDLESS)
        comes_while_it_is_written(server, (chunk for chunk in stream if chunk.choices[0].delta.content))
        stream.close()
        assert server.seconds_until_idle() < 1


def test_timeout(client, server):
    impatient = client.with_options(timeout=0.3)
    start = time.monotonic()
    with pytest.raises(openai.APITimeoutError):
        ask(impatient, **ENDLESS)
    assert time.monotonic() - start < 5
    assert server.seconds_until_idle() < 1


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(openai.APIConnectionError):
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0).models.list()


def test_the_server_stops(client):
    """A stream that is under way at SIGTERM ends with an error that says so, not with a broken line."""
    with Server("--drain-timeout", "0.5") as server:
        own = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
        stream = ask(own, stream=True, **ENDLESS)
        next(stream)
        server.process.terminate()
        with pytest.raises(openai.APIError, match="shutting down"):
            for _chunk in stream:
                pass
        assert server.process.wait(10) == 0
        server.process.poll = lambda: None  # it ended as it should


def test_async_client(server):
    async def main():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
            async def one(i):
                return await client.chat.completions.create(model=MODEL, messages=WHO, max_tokens=6 + i % 3, temperature=0)

            answers = await asyncio.gather(*(one(i) for i in range(12)))
            assert [a.usage.completion_tokens for a in answers] == [6 + i % 3 for i in range(12)]
            task = asyncio.create_task(client.chat.completions.create(model=MODEL, messages=WHO, **ENDLESS))
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert server.seconds_until_idle() < 1
