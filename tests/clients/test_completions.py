"""Completions, models and the small routes, through the OpenAI client."""

from conftest import MODEL, WHO_ANSWER

PROMPT = "<|turn>user\nWho are you?<turn|>\n<|turn>model\n"


def test_completes(client):
    answer = client.completions.create(model=MODEL, prompt=PROMPT, temperature=0, max_tokens=60)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == WHO_ANSWER
    assert answer.choices[0].finish_reason == "stop"
    chunks = list(client.completions.create(model=MODEL, prompt=PROMPT, temperature=0, max_tokens=60, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == WHO_ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert client.completions.create(model=MODEL, prompt=PROMPT).usage.completion_tokens == 16, "the API's default"


def test_several_prompts_and_choices(client):
    answer = client.completions.create(model=MODEL, prompt=[PROMPT, "One two"], n=2, temperature=0, max_tokens=4, echo=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == PROMPT + "I am Jewel's" or answer.choices[0].text.startswith(PROMPT)
    assert answer.choices[3].text.startswith("One two")


def test_token_ids_and_logprobs(client, server):
    ids = server.post("/tokenize", {"prompt": PROMPT})["tokens"]
    answer = client.completions.create(model=MODEL, prompt=ids, temperature=0, max_tokens=5, logprobs=2)
    chances = answer.choices[0].logprobs
    assert "".join(chances.tokens) == answer.choices[0].text
    assert WHO_ANSWER.startswith(answer.choices[0].text)
    assert all(len(top) == 2 and max(top.values()) == chance for top, chance in zip(chances.top_logprobs, chances.token_logprobs))
    assert chances.text_offset[0] == 0 and chances.text_offset == sorted(chances.text_offset)
    assert server.post("/detokenize", {"tokens": ids[1:]})["prompt"] == PROMPT  # [0] is <bos>


def test_models(client, server):
    (model,) = client.models.list().data
    assert model.id == MODEL
    assert model.max_model_len >= 1024
    assert model.created > 1_700_000_000


def test_probes(server):
    for path in ("/health", "/ping"):
        assert server.get(path) == ""
    assert "version" in server.get("/version")
    assert server.gauge("vllm:num_requests_running") == 0
