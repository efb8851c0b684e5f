"""A `jewel serve` of a test's own, on a free port, with its log kept. Used as a context manager; leaving it sends SIGTERM
and expects the server to end by itself, with exit code 0."""

import json
import os
import re
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("JEWEL_BINARY", ROOT / "build/release/jewel"))
DEMO_MODEL = ROOT / "models/jewel-demo"
START_SECONDS = 60  # one is enough on a machine that does nothing else; sanitizers and full machines take longer
STOP_SECONDS = 30


class Server:
    def __init__(self, *flags: str, model: Path = DEMO_MODEL, env: dict[str, str] | None = None):
        self.words = [str(BINARY), "serve", str(model), "--host", "127.0.0.1", "--port", "0",
                      "--served-model-name", "jewel-demo", *flags]
        self.env = {**os.environ, **(env or {})}
        self.url = ""

    def __enter__(self) -> "Server":
        self.log = tempfile.NamedTemporaryFile("w+", prefix="jewel-serve-", suffix=".log")
        self.process = subprocess.Popen(self.words, stdout=subprocess.DEVNULL, stderr=self.log, env=self.env)
        for _ in range(START_SECONDS * 50):
            found = re.search(r"serving .* at (http://[^ ,]+),", self.log_text())
            if found:
                self.url = found[1]
                return self
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        self.process.kill()
        raise RuntimeError(f"{' '.join(self.words)} did not start:\n{self.log_text()}")

    def __exit__(self, kind, error, trace) -> None:
        died = self.process.poll()
        if died is None:
            self.process.terminate()
        try:
            status = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            status = f"none: it was killed {STOP_SECONDS} s after SIGTERM"
        text = self.log_text()
        self.log.close()
        if kind is None and (died is not None or status != 0):
            raise AssertionError(f"the server ended {'before' if died is not None else 'after'} SIGTERM, exit status {status}; its log:\n{text[-4000:]}")

    def log_text(self) -> str:
        return Path(self.log.name).read_text()

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return response.read().decode()

    def post(self, path: str, body: dict) -> dict:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def gauge(self, name: str) -> float:
        """The sum over a metric's label sets."""
        values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? ([0-9.e+-]+)$", self.get("/metrics"), re.MULTILINE)
        assert values, f"/metrics has no {name}"
        return sum(map(float, values))

    def seconds_until_idle(self, limit: float = 10) -> float:
        """How long until no request is running or waiting."""
        start = time.monotonic()
        while self.gauge("vllm:num_requests_running") + self.gauge("vllm:num_requests_waiting") > 0:
            if time.monotonic() - start > limit:
                raise AssertionError(f"requests are still under way after {limit} s")
            time.sleep(0.01)
        return time.monotonic() - start

    def wait_for(self, gauge: str, least: float, limit: float = 10) -> None:
        end = time.monotonic() + limit
        while self.gauge(gauge) < least:
            assert time.monotonic() < end, f"{gauge} never reached {least}"
            time.sleep(0.01)
