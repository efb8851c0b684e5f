#!/usr/bin/env python3
"""Whether the joules that answers are told add up: a server under mixed load, what its answers said, what its books say
of rest, and the card's own counter.

    bench/energy_books.py [--jewel PROGRAM] [--model DIR] [--device auto] [--seconds 60] [--clients 8] [--gpu 0]
                          [--json FILE] [FLAGS OF SERVE…]

Clients ask for answers of 8 to 256 tokens to prompts of 20 to 1,500 words, pause for up to a second, and ask again. From
start to end: the sum of `usage.energy.joules`, the rise of jewel_energy_joules_total{phase="idle"}, and that of NVML's
counter, read by this script. Exit code 3: answers and rest are not within 2 % of the counter, or an answer had no joules."""

import json
import random
import re
import sys
import threading
import time

from served import Card, Server, arguments_of, parser_of, write_result

BAR = 0.02


def client(server, seed, until, answers):
    numbers = random.Random(seed)
    while time.monotonic() < until:
        words = " ".join(f"w{numbers.randrange(1000)}" for _ in range(numbers.choice([20, 100, 500, 1500])))
        body = {"messages": [{"role": "user", "content": words}], "max_tokens": numbers.randint(8, 256),
                "ignore_eos": True, "temperature": 0}
        answers.append(json.loads(server.ask("POST /v1/chat/completions", json.dumps(body).encode()))["usage"])
        time.sleep(numbers.random())


def books(server):
    text = server.ask("GET /metrics").decode()
    phases = dict((phase, float(value)) for phase, value in
                  re.findall(r'^jewel_energy_joules_total\{.*phase="(\w+)".*\} (\S+)$', text, re.M))
    (counter,) = re.findall(r"^hw_energy_joules_total\{.*\} (\S+)$", text, re.M)
    return phases, float(counter)


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    arguments = arguments_of(parser)

    card = Card(arguments.gpu)
    if card.handle is None:
        sys.exit("energy_books: no NVML counter to hold the books against")
    server = Server(arguments, "off")
    try:
        for seed in range(3):  # the first prices
            client(server, seed, time.monotonic() + 0.1, [])
        time.sleep(3)
        answers, before, own, start = [], books(server), card.joules(), time.monotonic()
        threads = [threading.Thread(target=client, args=(server, 100 + i, start + arguments.seconds, answers))
                   for i in range(arguments.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        work_s = time.monotonic() - start
        time.sleep(11)  # a rest between two of the meter's readings
        after, own, passed = books(server), card.joules() - own, time.monotonic() - start
    finally:
        server.stop()

    told = [usage["energy"]["joules"] for usage in answers if "energy" in usage]
    phase = {name: after[0][name] - before[0][name] for name in after[0]}
    counter = after[1] - before[1]
    off = (sum(told) + phase["idle"]) / own - 1
    figures = [("answers", len(answers), ""), ("answers with joules", len(told), ""),
               ("joules of answers", sum(told), "J"), *((f"books, {name}", value, "J") for name, value in phase.items()),
               ("counter, as the server has it", counter, "J"), ("counter, read from outside", own, "J"),
               ("answers + rest over the counter, less 1", off, ""), ("tokens out", sum(u["completion_tokens"] for u in answers), ""),
               ("time of work", work_s, "s"), ("time in all", passed, "s")]
    for name, value, unit in figures:
        print(f"figure {name}: {value:.6g} {unit}")
    write_result(arguments, card, "joules told to answers, and of rest, against the card's counter",
                 [{"name": n, "value": round(v, 5), "unit": u} for n, v, u in figures])
    if abs(off) > BAR or len(told) < len(answers):
        print(f"missed: {off:+.2%} (bar {BAR:.0%}), {len(answers) - len(told)} answers without joules", file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
