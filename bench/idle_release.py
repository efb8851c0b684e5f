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

import statistics
import sys
import time

from served import Card, Server, arguments_of, parser_of, write_result

CORE_BAR = 0.005
WATTS_BAR = 2  # over the card alone


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
    parser = parser_of(__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--requests", type=int, default=3)
    parser.add_argument("--period", type=float, default=60)
    parser.add_argument("--window", type=float, default=20)
    arguments = arguments_of(parser)

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
    write_result(arguments, card, "a server that waits, and one request at a time, with the device kept and given back",
                 figures)

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
