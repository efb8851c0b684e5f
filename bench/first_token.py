#!/usr/bin/env python3
"""Seconds from a request to its first token, over HTTP: an image and a question of some 64 tokens, one request at a time.

    bench/first_token.py --images FILE… [--jewel PROGRAM] [--model DIR] [--device auto] [--gpu 0] [--json FILE] [FLAGS OF SERVE…]

Every image is asked about once, so that no cache can have it; the first two are warm-up. Beside it, the same question
without an image. The answer is one token: the time ends when the stream has its text, or says that it has none (random weights).
Decoding of the JPEG, resizing, base64 and JSON are in it."""

import base64
import json
import mimetypes
import statistics
import sys
import time

from served import Card, Server, arguments_of, parser_of, write_result

QUESTION = " ".join(f"word{i}" for i in range(30))


def first_token(server, content):
    body = json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 1, "temperature": 0,
                       "ignore_eos": True, "stream": True}).encode()
    start = time.monotonic()
    with server.send("POST /v1/chat/completions", body) as connection:
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
            complete = answer[:answer.rfind(b"\n") + 1]
            if complete and not complete.startswith(b"HTTP/1.1 200"):
                sys.exit(f"first_token: {answer[:500]!r}")
            for line in complete.split(b"\n"):
                if line.startswith(b"data: {"):
                    choices = json.loads(line[6:])["choices"]
                    if choices and (choices[0]["delta"].get("content") or choices[0]["finish_reason"]):
                        return time.monotonic() - start
    sys.exit(f"first_token: no text came: {answer[-500:]!r}")


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--images", nargs="+", required=True)
    arguments = arguments_of(parser)
    server = Server(arguments, "off")
    figures = []
    try:
        with_image = []
        for path in arguments.images:
            with open(path, "rb") as file:
                data = base64.b64encode(file.read()).decode()
            url = f"data:{mimetypes.guess_type(path)[0]};base64,{data}"
            with_image.append(first_token(server, [{"type": "image_url", "image_url": {"url": url}},
                                                   {"type": "text", "text": f"{path} {QUESTION}"}]))
        text = [first_token(server, f"{i} {QUESTION}") for i in range(len(with_image))]
        for name, times in (("an image and a question", with_image[2:]), ("the question alone", text[2:])):
            figures.append({"name": f"{name}, to the first token over HTTP", "value": statistics.median(times) * 1e3,
                            "unit": "ms", "n": len(times), "spread": [min(times) * 1e3, max(times) * 1e3]})
    finally:
        server.stop()
    for figure in figures:
        low, high = figure["spread"]
        print(f"{figure['name']}: {figure['value']:.1f} ms (median of {figure['n']}, {low:.1f} to {high:.1f})")
    arguments.images = len(arguments.images)
    write_result(arguments, Card(arguments.gpu), "time to the first token over HTTP, one request at a time", figures)


if __name__ == "__main__":
    main()
