"""/openapi.json, by a program that takes it at its word: schemathesis makes requests that it allows and requests that it
forbids, the same ones every time, and looks for statuses and answers that it does not describe."""

import json
import subprocess
import tempfile

from server import ROOT, Server

SCHEMATHESIS = ROOT / "build/clients/bin/schemathesis"
# What is left out: positive_data_acceptance, since requests may be refused for more than their shape (a prompt that is too
# long, a regular expression that is none, a tool that was never declared), and negative_data_rejection, since readers take
# more than the document promises (3.0 for 3, a name that nobody looks at).
CHECKS = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
          "response_schema_conformance", "missing_required_header", "unsupported_method"]
EXAMPLES = 50  # of each operation, by the fuzzer; the examples and the edges of each field come on top
SECONDS = 300  # and no more
WRITTEN = ("GET", "POST", "DELETE")


def test_schemathesis():
    # Short answers: what is asked for is looked at, not what the model says.
    limits = json.dumps({"max_new_tokens": 4})
    with Server("--override-generation-config", limits, "--allowed-media-domains", "none") as server, tempfile.TemporaryDirectory() as folder:
        words = ["run", f"{server.url}/openapi.json", "--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing",
                 "--seed", "1", "--max-examples", str(EXAMPLES), "--generation-database", "none",
                 "--continue-on-failure", "--no-shrink", "--warnings", "off", "--no-color"]
        done = subprocess.run([SCHEMATHESIS, *words], cwd=folder, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
        paths = json.loads(server.get("/openapi.json"))["paths"]
        paths.pop("/openapi.json")  # schemathesis leaves out where it has the document from
        operations = sum(method.upper() in WRITTEN for path in paths.values() for method in path)
        assert f"Tested: {operations}\n" in done.stdout, done.stdout[-3000:]
        assert server.seconds_until_idle() < 5
        answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0})
        assert answer["choices"][0]["message"]["content"].startswith("I am")
