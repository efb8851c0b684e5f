"""What benches of a running server share: the card's counter, the server, their flags and the result file."""

import argparse
import ctypes
import datetime
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time


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

    def send(self, head, body=b""):
        """A connection on which the request is under way."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.path)
        connection.sendall(head.encode() + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
                           b"Content-Length: %d\r\n\r\n" % len(body) + body)
        return connection

    def ask(self, head, body=b""):
        with self.send(head, body) as connection:
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


def parser_of(description):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jewel", default="build/release/jewel")
    parser.add_argument("--model", default="models/jewel-demo")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--json")
    return parser


def arguments_of(parser):
    """What the script does not know goes to `jewel serve`."""
    arguments, arguments.flags = parser.parse_known_args()
    return arguments


def write_result(arguments, card, what, figures):
    if not arguments.json:
        return
    version = subprocess.run([arguments.jewel, "--version"], capture_output=True, text=True).stdout.strip()
    with open(arguments.json, "w") as file:
        json.dump({"what": what, "date": datetime.date.today().isoformat(), "version": version,
                   "machine": f"{card.name or 'no NVIDIA card'}, {platform.machine()}, {os.cpu_count()} cores",
                   "settings": {k: v for k, v in vars(arguments).items() if k != "json"},
                   "method": "NVML energy counter" if card.handle else "none", "ceilings": {}, "figures": figures},
                  file, indent=1)
        file.write("\n")
