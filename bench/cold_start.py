#!/usr/bin/env python3
"""From exec to the first token: `jewel serve` is started, asked as soon as its socket answers, and stopped, again
and again. Prints the median and the range of exec → listening and exec → first token, in milliseconds.

    bench/cold_start.py [--json FILE] [JEWEL] [MODEL] [TIMES] [FLAGS OF SERVE…]

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


def machine():
    with open("/proc/cpuinfo") as file:
        names = [line.split(": ", 1)[1].strip() for line in file if line.startswith("model name")]
    return f"{names[0] if names else 'unknown processor'}, {os.cpu_count()} cores; load average {os.getloadavg()[0]:.1f} while it ran"


def result(jewel, model, times, figures):
    version = subprocess.run([jewel, "--version"], capture_output=True, text=True).stdout.strip()
    return {"what": f"jewel serve {model}: from exec to the first token", "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "version": version, "machine": machine(), "settings": {"runs": times, "page_cache": "warm"},
            "ceilings": {"exec to first token": BAR_MS}, "figures": figures}


def main():
    words = sys.argv[1:]
    json_file = None
    if words[:1] == ["--json"]:
        json_file, words = words[1], words[2:]
    jewel, model, times = [*words[:3], *["build/release/jewel", "models/jewel-demo", "10"][len(words[:3]):]]
    times = int(times)
    cold = once(jewel, model, words[3:])
    runs = [once(jewel, model, words[3:]) for _ in range(times)]
    print(f"the first: listening after {cold[0]:.0f} ms, first token after {cold[1]:.0f} ms")
    figures = []
    for name, column, bar in (("exec to listening", 0, None), ("exec to first token", 1, BAR_MS)):
        values = [run[column] for run in runs]
        print(f"{name}: {statistics.median(values):.1f} ms (median of {times}; {min(values):.1f} to {max(values):.1f})")
        figures.append({"name": name, "value": round(statistics.median(values), 1), "unit": "ms", "ceiling": bar, "n": times,
                        "spread": {"low": round(min(values), 1), "high": round(max(values), 1), "what": f"min to max of {times} runs"}})
    median = statistics.median(run[1] for run in runs)
    print(f"the bar is {BAR_MS} ms: {'met' if median <= BAR_MS else 'missed'}")
    if json_file:
        with open(json_file, "w") as file:
            json.dump(result(jewel, model, times, figures), file, indent=2)
            file.write("\n")
    return 0 if median <= BAR_MS else 3


if __name__ == "__main__":
    sys.exit(main())
