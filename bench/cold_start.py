#!/usr/bin/env python3
"""From exec to the first token: `jewel serve` is started, asked as soon as its socket answers, and stopped, again
and again. Prints the median and the range of exec → listening and exec → first token, in milliseconds.

    bench/cold_start.py [JEWEL] [MODEL] [TIMES] [FLAGS OF SERVE…]

The weights' files are in the page cache from the second time on; the first is printed apart. The bar is 1,000 ms for
the demo model; exit code 3 when the median misses it."""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

BAR_MS = 1000


def once(jewel, model, flags):
    path = os.path.join(tempfile.mkdtemp(), "s")
    start = time.monotonic()
    server = subprocess.Popen([jewel, "serve", model, "--uds", path, "--log-level", "error", *flags],
                              stderr=subprocess.DEVNULL)
    try:
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(path)
                break
            except OSError:
                connection.close()
                if server.poll() is not None:
                    sys.exit(f"jewel serve ended with {server.returncode}")
                time.sleep(0.0005)
        listening = time.monotonic()
        body = json.dumps({"messages": [{"role": "user", "content": "Who are you?"}], "stream": True, "max_tokens": 8,
                           "temperature": 0}).encode()
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                           b"Content-Length: %d\r\n\r\n" % len(body) + body)
        answer = b""
        while answer.count(b'"content":"') < 2:  # the first only names the role
            piece = connection.recv(1 << 16)
            if not piece:
                sys.exit(f"no answer: {answer[:500]!r}")
            answer += piece
        first = time.monotonic()
        connection.close()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
    return (listening - start) * 1e3, (first - start) * 1e3


def main():
    jewel = sys.argv[1] if len(sys.argv) > 1 else "build/release/jewel"
    model = sys.argv[2] if len(sys.argv) > 2 else "models/jewel-demo"
    times = int(sys.argv[3]) if len(sys.argv) > 3 else 10
    cold = once(jewel, model, sys.argv[4:])
    runs = [once(jewel, model, sys.argv[4:]) for _ in range(times)]
    print(f"the first: listening after {cold[0]:.0f} ms, first token after {cold[1]:.0f} ms")
    for name, column in (("exec to listening", 0), ("exec to first token", 1)):
        values = [run[column] for run in runs]
        print(f"{name}: {statistics.median(values):.1f} ms (median of {times}; {min(values):.1f} to {max(values):.1f})")
    median = statistics.median(run[1] for run in runs)
    print(f"the bar is {BAR_MS} ms: {'met' if median <= BAR_MS else 'missed'}")
    return 0 if median <= BAR_MS else 3


if __name__ == "__main__":
    sys.exit(main())
