#!/usr/bin/env python3
"""Captures what Transformers' Jinja environment makes of the demo model's template and of small templates that try Python's
way of printing: tests/data/text/templates.json. Needs jinja2 3.1.

The file: {"expressions": [{source, variables, text}], "conversations": [{messages, tools, options, text}]}; `text` is null
where the reference raises. The C++ test renders the same and compares.
"""

import json
import pathlib
import random

from reference_jinja import environment, render

ROOT = pathlib.Path(__file__).resolve().parents[2]

VALUES = {
    "none": None, "yes": True, "no": False, "int": -42, "big": 2**62, "half": 0.5, "one": 1.0, "huge": 1e22, "large": 1e15,
    "larger": 1e16, "tiny": 1e-5, "small": 0.0001, "third": 1 / 3, "negative": -0.0, "text": "  a'b\"c\\d\n\té<>&'/ 你😀\x01\x7f ",
    "empty": "", "list": [1, "two", None, True, 2.5, [], {}], "map": {"b": 1, "A": [1, {"z": None}], "a": "x", "C": 1e20},
    "nested": {"k": {"B": {"x": 1}, "a": [{"c": 1, "b": 2}]}}, "words": ["b", "A", "c"], "spaces": "\x1c \u00a0x y\u2003z\x1f",
    "get": {"items": [1], "keys": 2},
}

EXPRESSIONS = (
    [f"{{{{ {name} }}}}" for name in VALUES]
    + [f"{{{{ {name} | tojson }}}}" for name in VALUES]
    + [f"{{{{ {name} | string | upper }}}}|{{{{ {name} is sequence }}}}{{{{ {name} is mapping }}}}{{{{ {name} is number }}}}"
       f"{{{{ {name} is string }}}}{{{{ {name} is boolean }}}}{{{{ {name} is none }}}}{{{{ {name} is defined }}}}"
       f"{{{{ {name} is integer }}}}{{{{ {name} is float }}}}" for name in VALUES]
    + [
        "{{ map | tojson(indent=2) }}", "{{ map | tojson(indent=4, sort_keys=true) }}", "{{ list | tojson(indent=1) }}",
        "{{ map | tojson(separators=(',', ':')) }}", "{{ text | tojson(ensure_ascii=true) }}", "{{ nested | tojson(true) }}",
        "{{ nested | tojson(indent=2, separators=(',', ': ')) }}", "{{ [] | tojson(indent=2) }}{{ {} | tojson(indent=2) }}",
        "{% for k, v in map | dictsort %}{{ k }}={{ v }};{% endfor %}",
        "{% for k, v in map | dictsort(true) %}{{ k }};{% endfor %}",
        "{% for k, v in {'b': 1, 'a': 2} | dictsort(by='value', reverse=true) %}{{ k }};{% endfor %}",
        "{% for k, v in map.items() %}{{ k }}{% endfor %}{% for k in map %}{{ k }}{% endfor %}{{ map.keys() | list }}",
        "{{ map.get('b') }}{{ map.get('nope') }}{{ map.get('nope', 'd') }}{{ map['nope'] }}{{ map.nope is defined }}",
        "[{{ spaces | trim }}][{{ spaces.strip() }}][{{ spaces.lstrip() }}][{{ spaces.rstrip() }}]{{ spaces.split() }}",
        "{{ 'a,b,,c'.split(',') }}{{ 'a,b,c'.split(',', 1) }}{{ 'abc'.split('b')[0] }}{{ 'abc'.startswith('ab') }}",
        "{{ 'xxaxx'.strip('x') }}{{ 'aXbX'.replace('X', '-') }}{{ 'Hello'.lower() }}{{ 'hi there'.title() }}",
        "{{ words | join(', ') }}|{{ list | join('/') }}|{{ words | length }}{{ words | first }}{{ words | last }}",
        "{{ words | map('upper') | list }}{{ words | sort }}{{ words[1:] }}{{ words[::-1] }}{{ words[-1] }}",
        "{{ words | map('upper') | join }}{{ [{'n': 1}, {'n': 2}] | map(attribute='n') | list }}",
        "{{ ['string', 'null'] | upper }}{{ none | upper }}{{ 1.50 | string }}{{ true | lower }}",
        "{{ nope | default('d') }}{{ empty | default('d') }}{{ empty | default('d', true) }}{{ nope }}{{ nope or 'x' }}",
        "{{ 'a' ~ 1 ~ none ~ true }}{{ 'a' + 'b' }}{{ 'ab' * 2 }}{{ 7 // 2 }}{{ 7 % 4 }}{{ 7 / 2 }}{{ 2 ** 5 }}",
        "{{ 'a' if false }}{{ 'x' in 'xyz' }}{{ 'b' in words }}{{ 'b' in map }}{{ 1 == 1.0 }}{{ not empty }}",
        "{% set ns = namespace(n=0, t='') %}{% for w in words %}{% set ns.n = ns.n + loop.index %}{% set ns.t = ns.t + w %}"
        "{% endfor %}{{ ns.n }}{{ ns.t }}",
        "{% for w in words %}{% if loop.first %}{% continue %}{% endif %}{{ w }}{{ loop.index0 }}{{ loop.last }}{% break %}"
        "{% endfor %}",
        "{% for w in words if w != 'A' %}{{ loop.index }}{{ w }}{{ loop.length }}{% else %}none{% endfor %}",
        "{% for w in [] %}x{% else %}none{% endfor %}{% for i in range(2, 8, 3) %}{{ i }}{% endfor %}",
        "{% macro m(a, b='d') %}<{{ a }}{{ b }}>{% endmacro %}{{ m(1) }}{{ m(2.0, b=none) }}{{ m('x') | length }}",
        "{% macro r(v) %}{% if v is mapping %}{% for k, w in v | dictsort %}{{ k }}:{{ r(w) }}{% endfor %}{% else %}{{ v }}"
        "{% endif %}{% endmacro %}{{ r(nested) }}",
        "{% set x %}a\n  b{{ 1.0 }}{% endset %}{{ x | trim }}|{{ x | length }}",
        "a\n  {% if true %}\n  b\n  {% endif %}\nc\n    {{ 1 }}\n{# c #}\nd\n",
        "  {%- if true %} x {%+ if true %} y{% endif %}{% endif -%}  \n z",
        "{{ '\\n' }}{{ '\\t' }}{{ \"it's\" }}{{ 'a\\\\b' }}",
        "{{ raise_exception('no: ' ~ int) }}", "{{ nope.attribute }}", "{{ [1, 2][5] }}", "{{ 1 + 'a' }}",
        "{{ 'abc'[1:] }}{{ 'abc'[0] }}{{ 'abc' | length }}", "{{ words | reverse | list }}",
        "{{ '%s and %d' | format('a', 3) }}", "{{ 3.7 | int }}{{ '4' | int }}{{ 2 | float }}{{ -3 | abs }}",
        "{{ words | tojson | length }}", "{{ {'a': 1, 'b': [1.0, 'x']} }}", "{{ 'a\\'b' }}{{ [\"a'b\"] }}{{ ['a\"b\\n'] }}",
        "{{ words | list | length > 2 and 'many' or 'few' }}", "{{ get['items'] }}{{ get.get('keys') }}",
        "{{ [1,2] + [3] }}{{ words is iterable }}{{ 'x' is iterable }}{{ int is iterable }}",
        "{{ words | selectattr('x', 'defined') | list }}{{ [{'r': 'a'}, {'r': 'b'}] | selectattr('r', 'equalto', 'b') | list }}",
        "{{ 'straße' | upper }}{{ 'İ' | lower }}{{ 'ΑΣ' | lower }}", "{{ 'a  b' | replace('  ', ' ') }}{{ 'ab' | capitalize }}",
    ]
)

TEXTS = ["Hi there", "  padded\n", "", "What is in this picture?", "1 < 2 && \"x\"", "你好 👋", "line\nline", "{a: 1}",
         "<|channel>thought\nhm\n<channel|>Hello!", "a<|channel>b<channel|>c<|channel>d", "x<channel|>y"]
ARGUMENTS = [None, {}, {"location": "Tokyo", "days": 3, "flag": True, "opts": {"b": [1, "x"], "a": None}}, {"k": 1.5},
             {"B": 1, "a": {"Z": [], "y": {}}, "C": 1e20, "text": "a}b,\n\"q\""}]
PROPERTIES = {
    "location": {"type": "string", "description": "City"},
    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    "days": {"type": "integer", "description": "N days", "minimum": 1, "default": 2},
    "o": {"type": "object", "description": "obj", "required": ["x"],
          "properties": {"y": {"type": "string", "enum": ["a", "b"]}, "x": {"type": "number"}}},
    "arr": {"type": "array", "description": "list", "items": {"type": "string", "description": "it"}},
    "deep": {"type": "array", "items": {"type": "object", "required": ["q"], "default": {"a": 1, "B": None}, "minItems": None,
                                        "properties": {"q": {"type": "array", "items": {"type": ["integer", "null"]}}}}},
    "n": {"type": "integer", "nullable": True}, "u": {"type": ["string", "null"]}, "any": {"description": "untyped"},
    "Zed": {"type": "boolean"},
}


def tool(rng):
    function = {"name": rng.choice(["get_weather", "ping", "a-b.c"]), "description": rng.choice(["Get weather", "p", ""])}
    if rng.random() < 0.8:
        names = rng.sample(sorted(PROPERTIES), rng.randrange(0, len(PROPERTIES)))
        function["parameters"] = {"type": "object", "properties": {name: PROPERTIES[name] for name in names}}
        if names and rng.random() < 0.6:
            function["parameters"]["required"] = names[:2]
    if rng.random() < 0.2:
        function["response"] = {"description": "what it gives", "type": "object"}
    return {"type": "function", "function": function}


def content(rng, media=True):
    if rng.random() < 0.6:
        return rng.choice(TEXTS)
    parts = [{"type": "text", "text": rng.choice(TEXTS)} for _ in range(rng.randrange(0, 3))]
    if media:
        parts += [{"type": rng.choice(["image", "image_url", "audio", "input_audio", "video"])} for _ in range(rng.randrange(3))]
    rng.shuffle(parts)
    return parts


def conversation(rng):
    messages = []
    if rng.random() < 0.4:
        messages.append({"role": rng.choice(["system", "developer"]), "content": content(rng, media=False)})
    number = 0
    for _ in range(rng.randrange(1, 7)):
        role = rng.choice(["user", "user", "assistant", "assistant", "call", "system"])
        if role == "call":
            calls = []
            for _ in range(rng.randrange(1, 3)):
                number += 1
                function = {"name": rng.choice(["get_weather", "ping"]), "arguments": rng.choice(ARGUMENTS)}
                calls.append({"id": f"c{number}", "type": "function", "function": function})
            message = {"role": "assistant", "content": rng.choice([None, "", "Let me see.", *TEXTS]), "tool_calls": calls}
            if rng.random() < 0.5:
                message[rng.choice(["reasoning", "reasoning_content"])] = "r1\nr2"
            if rng.random() < 0.15:
                message["tool_responses"] = [{"name": "ping", "response": rng.choice([{"B": 1, "a": "x"}, "ok", None])}]
            messages.append(message)
            for call in calls:
                if rng.random() < 0.7:
                    answer = {"role": "tool", "content": content(rng), "tool_call_id": call["id"]}
                    if rng.random() < 0.2:
                        answer.update(tool_call_id="other", name="named")
                    messages.append(answer)
        else:
            message = {"role": role, "content": content(rng)}
            if role == "assistant" and rng.random() < 0.4:
                message["reasoning"] = "because"
            messages.append(message)
    return messages


def conversations(template):
    rng = random.Random(4)
    for i in range(240):
        options = {"add_generation_prompt": rng.random() < 0.8}
        if rng.random() < 0.6:
            options["enable_thinking"] = rng.random() < 0.6
        if rng.random() < 0.3:
            options["preserve_thinking"] = rng.random() < 0.7
        messages = [] if i == 0 else conversation(rng)
        tools = [tool(rng) for _ in range(rng.randrange(1, 3))] if rng.random() < 0.35 else []
        text = render(template, messages, tools or None, bos_token="<bos>", **options)
        yield {"messages": messages, "tools": tools, "options": options, "text": text}


def expression(source):
    try:
        text = environment().from_string(source).render(**VALUES)
    except Exception:  # the reference's own error: ours has to be one, too
        text = None
    return {"source": source, "text": text}


if __name__ == "__main__":
    template = (ROOT / "models/jewel-demo/chat_template.jinja").read_text()
    out = ROOT / "tests/data/text/templates.json"
    data = {"variables": VALUES, "expressions": [expression(s) for s in EXPRESSIONS],
            "conversations": list(conversations(template))}
    out.write_text(json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("},{\"messages\"", "},\n{\"messages\"") + "\n")
    raised = [e["source"] for e in data["expressions"] if e["text"] is None]
    print(out, out.stat().st_size, "bytes;", len(data["expressions"]), "expressions, of which raise:", *raised, sep="\n  ")
