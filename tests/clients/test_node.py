"""OpenAI's client for Node, on Node 20: runs node/*.test.cjs against a server."""

import os
import subprocess
from pathlib import Path

import pytest
from server import ROOT, Server

HERE = Path(__file__).parent
CLIENTS = ROOT / "build/clients"


@pytest.mark.parametrize("suite", sorted(path.name for path in (HERE / "node").glob("*.test.cjs")))
def test_node(server, suite):
    with Server("--api-key", "right") as keyed:
        env = {**os.environ, "BASE_URL": server.url, "KEYED_URL": keyed.url, "NODE_PATH": str(CLIENTS / "node_modules")}
        done = subprocess.run([CLIENTS / "bin/node", "--test", "--test-reporter=tap", HERE / "node" / suite],
                              env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# fail 0" in done.stdout and "# pass 0" not in done.stdout
