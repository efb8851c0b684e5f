#!/usr/bin/env python3
"""What a server draws while nobody asks, and what a request costs when one comes a minute: with the device kept, and
with it given back (`jewel serve --idle-release`).

    bench/idle_release.py [--jewel PROGRAM] [--model DIR] [--device auto] [--seconds 5] [--requests 3] [--period 60]
                          [--window 20] [--gpu 0] [--json FILE] [FLAGS OF SERVE…]

The same figures twice, first with `--idle-release off`, then with `--idle-release SECONDS`: the server's share of a core
and the card's watts over a window without requests, joules of the card per request, seconds of a request. Joules come
from NVML's energy counter of the whole card, so nothing else may run on it; without one there are none, and the rest is
still measured. Exit code 3: an answer changed, the server took more than 0.5 % of a core, or the card, given back, drew
2 W more than before there was a server."""

import argparse
import ctypes
import datetime
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

CORE_BAR = 0.005
WATTS_BAR = 2  # over the card alone


class Card:
    """NVML's counter, in joules; none where there is no library or no counter."""

    def __init__(self, index):
        self.handle, self.name = None, None
        try:
            self.nvml = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return
        handle = ctypes.c_void_p()
        if self.nvml.nvmlInit_v2() or self.nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
            return
        name = ctypes.create_string_buffer(96)
        self.nvml.nvmlDeviceGetName(handle, name, 96)
        self.handle, self.name = handle, name.value.decode()
        if self.joules() is None:
            self.handle = None

    def joules(self):
        if self.handle is None:
            return None
        value = ctypes.c_ulonglong()
        if self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle, ctypes.byref(value)):
            return None
        return value.value / 1e3


class Server:
    def __init__(self, arguments, idle_release):
        self.path = os.path.join(tempfile.mkdtemp(), "s")
        self.process = subprocess.Popen([arguments.jewel, "serve", arguments.model, "--uds", self.path, "--device",
                                         arguments.device, "--idle-release", idle_release, *arguments.flags])
        while not self.ready():
            if self.process.poll() is not None:
                sys.exit(f"jewel serve ended with {self.process.returncode}")
            time.sleep(0.05)

    def ready(self):
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(self.path)
                return True
            except OSError:
                return False

    def ask(self, head, body=b""):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.path)
            connection.sendall(head.encode() + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
                               b"Content-Length: %d\r\n\r\n" % len(body) + body)
            answer = b""
            while piece := connection.recv(1 << 16):
                answer += piece
        if not answer.startswith(b"HTTP/1.1 200"):
            sys.exit(f"{head}: {answer[:500]!r}")
        return answer.partition(b"\r\n\r\n")[2]

    def chat(self):
        """The answer, and the seconds it took."""
        body = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 32, "temperature": 0}
        start = time.monotonic()
        answer = json.loads(self.ask("POST /v1/chat/completions", json.dumps(body).encode()))
        return answer["choices"][0]["message"]["content"], time.monotonic() - start

    def metric(self, name):
        for line in self.ask("GET /metrics").decode().splitlines():
            if line.startswith(name + "{"):
                return float(line.rpartition(" ")[2])
        sys.exit(f"/metrics has no {name}")

    def cpu_s(self):
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def rest(card, seconds, server=None):
    """Watts of the card, and the server's share of a core."""
    joules, cpu, start = card.joules(), server and server.cpu_s(), time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - start
    watts = None if joules is None else (card.joules() - joules) / passed
    return watts, server and (server.cpu_s() - cpu) / passed


def one_way(arguments, card, given_back):
    server = Server(arguments, str(arguments.seconds) if given_back else "off")
    try:
        answers = {server.chat()[0]}
        if given_back:
            while server.metric("jewel_idle_released") != 1:
                time.sleep(0.2)
        else:
            time.sleep(arguments.seconds)
        time.sleep(2)  # clocks go down
        watts, core = rest(card, arguments.window, server)
        joules, seconds, start = card.joules(), [], time.monotonic()
        for i in range(arguments.requests):
            answer, took = server.chat()
            answers.add(answer)
            seconds.append(took)
            time.sleep(max(0.0, start + (i + 1) * arguments.period - time.monotonic()))
        joules = None if joules is None else (card.joules() - joules) / arguments.requests
        wakes = server.metric("jewel_idle_wake_seconds_count")
        wake_s = server.metric("jewel_idle_wake_seconds_sum") / wakes if wakes else None
        return {"idle": watts, "core": core, "joules": joules, "seconds": seconds, "wake_s": wake_s, "answers": answers}
    finally:
        server.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jewel", default="build/release/jewel")
    parser.add_argument("--model", default="models/jewel-demo")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--requests", type=int, default=3)
    parser.add_argument("--period", type=float, default=60)
    parser.add_argument("--window", type=float, default=20)
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--json")
    arguments, arguments.flags = parser.parse_known_args()

    card = Card(arguments.gpu)
    bare, _ = rest(card, arguments.window if card.handle else 0)
    kept = one_way(arguments, card, False)
    back = one_way(arguments, card, True)
    figures = []

    def figure(name, value, unit, n=1, spread=None):
        if value is None:
            return
        figures.append({"name": name, "value": round(value, 5), "unit": unit, "n": n, "spread": spread})
        print(f"figure {name}: {value:.4g} {unit}")

    figure("no server, card", bare, "W")
    for word, way in (("kept", kept), ("given back", back)):
        figure(f"idle, {word}, card", way["idle"], "W")
        figure(f"idle, {word}, cores", way["core"], "cores")
        figure(f"one request each {arguments.period:g} s, {word}, card", way["joules"], "J/request", arguments.requests)
        figure(f"a request, {word}", statistics.median(way["seconds"]), "s", len(way["seconds"]),
               [min(way["seconds"]), max(way["seconds"])])
    figure("waking", back["wake_s"], "s")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"what": "a server that waits, and one request at a time, with the device kept and given back",
                       "date": datetime.date.today().isoformat(),
                       "version": subprocess.run([arguments.jewel, "--version"], capture_output=True, text=True).stdout.strip(),
                       "machine": f"{card.name or 'no NVIDIA card'}, {platform.machine()}, {os.cpu_count()} cores",
                       "settings": {k: v for k, v in vars(arguments).items() if k != "json"},
                       "method": "NVML energy counter" if card.handle else "none",
                       "ceilings": {}, "figures": figures}, file, indent=1)
            file.write("\n")

    missed = []
    if len(kept["answers"] | back["answers"]) != 1:
        missed.append("the answers differ")
    if max(kept["core"], back["core"]) > CORE_BAR:
        missed.append(f"a waiting server takes more than {CORE_BAR:.1%} of a core")
    if bare is not None and back["idle"] > bare + WATTS_BAR:
        missed.append(f"given back, the card draws {back['idle']:.1f} W, without a server {bare:.1f} W")
    for what in missed:
        print(f"missed: {what}", file=sys.stderr)
    sys.exit(3 if missed else 0)


if __name__ == "__main__":
    main()
