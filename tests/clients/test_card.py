"""What a published model card tells its readers to type: the configuration file, the `vllm serve` line, docker's flags and
the curl call, word for word, with `vllm` being a link to this program. The demo model stands in for the card's model, in the
layout of the Hugging Face cache, and a site of our own for the one that has the picture."""

import http.server
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from server import BINARY, DEMO_MODEL, ROOT

CONFIG = """\
model: MPSAIResilienceChallenge/gemma4-e4b-it-mps-optimized
tokenizer: MPSAIResilienceChallenge/gemma4-e4b-it-mps-optimized
dtype: bfloat16
max_model_len: 4096
gpu_memory_utilization: 0.90
kv_cache_dtype: fp8
limit_mm_per_prompt:
  image: 1
enable_chunked_prefill: true
enable_prefix_caching: true
max_num_seqs: 32
disable_log_requests: true
"""
SERVE = "vllm serve MPSAIResilienceChallenge/gemma4-e4b-it-mps-optimized --config vllm_config.yaml"
SERVE_ALONE = 'vllm serve "MPSAIResilienceChallenge/gemma4-e4b-it-mps-optimized"'
# What follows the image's name; its entry point is `vllm serve`.
DOCKER = """\
/model \\
--tokenizer /model \\
--dtype bfloat16 \\
--max-model-len 4096 \\
--kv-cache-dtype fp8 \\
--limit-mm-per-prompt '{"image":1}' \\
--enable-chunked-prefill \\
--enable-prefix-caching \\
--served-model-name gemma4-mps
"""
CURL = """\
curl -X POST "http://localhost:8000/v1/chat/completions" \\
-H "Content-Type: application/json" \\
--data '{ "model": "MPSAIResilienceChallenge/gemma4-e4b-it-mps-optimized",
"messages": [ { "role": "user", "content": [
{ "type": "text", "text": "Describe this image in one sentence." },
{ "type": "image_url", "image_url": { "url": "https://cdn.britannica.com/61/93061-050-99147DCE/Statue-of-Liberty-Island-New-York-Bay.jpg" } } ] } ] }'
"""
SITE = "https://cdn.britannica.com"
NAME = "MPSAIResilienceChallenge/gemma4-e4b-it-mps-optimized"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the configuration, `vllm` on its path, and a Hugging Face cache that has the model."""
    home = tmp_path_factory.mktemp("home")
    (home / "vllm_config.yaml").write_text(CONFIG)
    (home / "bin").mkdir()
    (home / "bin/vllm").symlink_to(BINARY.resolve())
    commit = "0123456789abcdef0123456789abcdef01234567"
    model = home / "hf/hub" / ("models--" + NAME.replace("/", "--"))
    for folder in ("refs", "blobs", f"snapshots/{commit}"):
        (model / folder).mkdir(parents=True)
    (model / "refs/main").write_text(commit)
    for number, path in enumerate(sorted(DEMO_MODEL.iterdir())):
        (model / "blobs" / str(number)).symlink_to(path)
        (model / "snapshots" / commit / path.name).symlink_to(f"../../blobs/{number}")
    return home


@pytest.fixture(scope="module")
def site():
    """Answers every GET with a photograph's bytes; what was asked for is in `asked`."""
    picture = (ROOT / "models/examples/word.png").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(picture)))
            self.end_headers()
            self.wfile.write(picture)

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


class Shell:
    """A server that a line of shell started. What is added to the line: a free port, so that tests can run side by side, and
    that the site on loopback may be asked."""

    def __init__(self, home: Path, line: str):
        env = {**os.environ, "PATH": f"{home}/bin:{os.environ['PATH']}", "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1"}
        self.log = home / "log"
        line = f"exec {line.strip()} --port 0 --allowed-media-domains 127.0.0.1"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(["sh", "-c", line], cwd=home, env=env, stdout=subprocess.DEVNULL, stderr=log)
        for _ in range(3000):
            found = re.search(r"serving .* at http://[^ ]*:(\d+),", self.log.read_text())
            if found or self.process.poll() is not None:
                break
            time.sleep(0.02)
        assert found, self.log.read_text()
        self.port = int(found[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0

    def curl(self, home: Path, call: str) -> tuple[dict, int]:
        """The call as it stands: a .curlrc says where its localhost:8000 is."""
        (home / ".curlrc").write_text(f'connect-to = "localhost:8000:127.0.0.1:{self.port}"\nsilent\nwrite-out = "\\n%{{http_code}}"\n')
        done = subprocess.run(["sh", "-c", call], env={**os.environ, "CURL_HOME": str(home)}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        body, status = done.stdout.rsplit("\n", 1)
        return json.loads(body), int(status)


def card_call(site, images=1) -> str:
    call = CURL.replace(SITE, f"http://127.0.0.1:{site.server_port}")
    part = call[call.index('{ "type": "image_url"'):call.index(" ] } ] }")]
    return call.replace(part, ", ".join([part] * images))


@pytest.mark.parametrize("line", [SERVE, SERVE_ALONE])
def test_the_card_s_lines(home, site, line):
    with Shell(home, line) as server:
        site.asked.clear()
        answer, status = server.curl(home, card_call(site))
        assert status == 200, answer
        assert answer["model"] == NAME
        assert answer["choices"][0]["message"]["content"]
        assert answer["usage"]["prompt_tokens_details"]["image_tokens"] > 0
        assert site.asked == ["/61/93061-050-99147DCE/Statue-of-Liberty-Island-New-York-Bay.jpg"]
        if line == SERVE:
            assert "disable_log_requests" in server.log.read_text(), "a retired key is named"
            refused, status = server.curl(home, card_call(site, images=2))
            assert status == 400 and "image" in refused["error"]["message"]


def test_docker_s_flags(home, site):
    with Shell(home, "vllm serve " + DOCKER.replace("/model", str(DEMO_MODEL))) as server:
        answer, status = server.curl(home, card_call(site).replace(NAME, "gemma4-mps"))
        assert (status, answer["model"]) == (200, "gemma4-mps")
        assert server.curl(home, card_call(site))[1] == 404, "it is served under the other name alone"
        assert server.curl(home, card_call(site, images=2).replace(NAME, "gemma4-mps"))[1] == 400


@pytest.mark.parametrize(("yaml", "flags"), [
    ("limit_mm_per_prompt:\n  image: 2\n", ""),
    ("limit_mm_per_prompt: '{\"image\": 2}'\n", ""),
    ("limit-mm-per-prompt.image: 2\n", ""),
    ("", """--limit-mm-per-prompt '{"image":2}'"""),
    ("", "--limit-mm-per-prompt.image 2"),
    ("", "--limit_mm_per_prompt.image=2"),
    ("limit_mm_per_prompt:\n  image: 7\n", "--limit-mm-per-prompt.image 2"),
])
def test_limits_of_pictures_in_every_spelling(home, site, yaml, flags):
    (home / "limits.yaml").write_text(yaml + "max_model_len: 2048\n")
    with Shell(home, f"vllm serve {DEMO_MODEL} --served-model-name {NAME} --config limits.yaml {flags}") as server:
        assert server.curl(home, card_call(site, images=2))[1] == 200
        refused, status = server.curl(home, card_call(site, images=3))
        assert status == 400 and "2" in refused["error"]["message"]


def test_the_check_of_the_card_s_file(home):
    env = {**os.environ, "PATH": f"{home}/bin:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", SERVE + " --check-config"], cwd=home, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    for number, key in enumerate(line.split(":")[0].strip() for line in CONFIG.splitlines()):
        if key != "image":
            assert re.search(rf"vllm_config\.yaml:{number + 1}\b.*{key}", done.stdout), (number + 1, key, done.stdout)
