"""The cache that `jewel pull` leaves is the one that the huggingface_hub package knows: it finds every file, has nothing to
correct, and brings none of them again. A stand-in of the hub on loopback has the demo model's files."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from server import BINARY, DEMO_MODEL

NAME = "org/demo"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = "model.safetensors"  # as on the hub: in large file storage, where the etag is a SHA-256
FILES = {path.name: path.read_bytes() for path in DEMO_MODEL.iterdir()}


def etag(name: str) -> str:
    data = FILES[name]
    return hashlib.sha256(data).hexdigest() if name == LARGE else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        self.server.asked.append((self.command, path))
        if path.startswith(f"/api/models/{NAME}/tree/"):
            return self.answer(json.dumps([{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                                           for name, data in FILES.items()]).encode())
        if path.startswith(f"/api/models/{NAME}"):
            files = [{"rfilename": name, "size": len(data), "blobId": etag(name),
                      **({"lfs": {"sha256": etag(name), "size": len(data), "pointerSize": 134}} if name == LARGE else {})} for name, data in FILES.items()]
            return self.answer(json.dumps({"id": NAME, "modelId": NAME, "sha": COMMIT, "private": False, "gated": False, "disabled": False,
                                           "downloads": 0, "likes": 0, "tags": [], "siblings": files}).encode())
        name = path.rsplit("/", 1)[-1]
        if path.startswith(f"/{NAME}/resolve/") and name in FILES:
            return self.answer(FILES[name], {"ETag": f'"{etag(name)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes",
                                             **({"X-Linked-Etag": f'"{etag(name)}"', "X-Linked-Size": str(len(FILES[name]))} if name == LARGE else {})})
        return self.answer(b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, 404)

    def answer(self, data: bytes, headers: dict[str, str] | None = None, status: int = 200):
        first = 0
        if status == 200 and (wanted := self.headers.get("Range")):
            first = int(wanted.removeprefix("bytes=").split("-")[0])
            status, headers = 206, {**(headers or {}), "Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(data) - first)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[first:])

    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def pulled(hub, tmp_path_factory):
    """HF_HOME after `jewel pull`, and the environment for who looks at it."""
    env = {**os.environ, "HF_HOME": str(tmp_path_factory.mktemp("hf")), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    env.pop("HF_HUB_CACHE", None)
    done = subprocess.run([BINARY, "pull", NAME], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip()), env


def python(env: dict[str, str], code: str):
    """Runs code that prints one JSON value, in a Python of its own: huggingface_hub reads its environment when it is imported."""
    done = subprocess.run([sys.executable, "-c", "import json, huggingface_hub as hf\n" + code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_finds_every_file_without_asking(pulled):
    directory, env = pulled
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    assert python(offline, f"print(json.dumps(hf.snapshot_download('{NAME}')))") == str(directory)
    names = sorted(path.name for path in directory.iterdir())
    assert {"config.json", "tokenizer.json", LARGE} <= set(names)
    found = python(offline, f"print(json.dumps([hf.try_to_load_from_cache('{NAME}', n) for n in {names}]))")
    assert found == [str(directory / name) for name in names]
    for name in names:
        assert (directory / name).read_bytes() == FILES[name]


def test_reads_the_cache_as_a_whole(pulled):
    directory, env = pulled
    repos, revisions, refs, warnings, size = python(env, """
info = hf.scan_cache_dir()
(repo,) = info.repos
print(json.dumps([[repo.repo_id, repo.repo_type], [r.commit_hash for r in repo.revisions], sorted(repo.refs), [str(w) for w in info.warnings],
                  info.size_on_disk]))""")
    assert (repos, revisions, refs, warnings) == ([NAME, "model"], [COMMIT], ["main"], [])
    assert size == sum(len(FILES[path.name]) for path in directory.iterdir())


def test_brings_nothing_again(hub, pulled):
    directory, env = pulled
    hub.asked.clear()
    for name in ("config.json", LARGE):
        assert python(env, f"print(json.dumps(hf.hf_hub_download('{NAME}', '{name}')))") == str(directory / name)
    assert hub.asked and not [path for method, path in hub.asked if method == "GET" and "/resolve/" in path], hub.asked


def test_what_the_package_brought_is_found(hub, pulled, tmp_path):
    """The other way round: jewel takes a snapshot of the package's as it is."""
    _, env = pulled
    env = {**env, "HF_HOME": str(tmp_path)}
    directory = python(env, f"print(json.dumps(hf.snapshot_download('{NAME}')))")
    hub.asked.clear()
    done = subprocess.run([BINARY, "pull", NAME], env={**env, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, directory), done.stderr
    assert hub.asked == []
