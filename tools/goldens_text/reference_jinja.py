"""The Jinja environment in which Transformers renders chat templates, rebuilt on PyPI's jinja2 alone."""

import json
from datetime import datetime

import jinja2
import jinja2.ext
import jinja2.sandbox


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda fmt: datetime.now().strftime(fmt)
    return env


def render(template, messages, tools=None, **kwargs):
    return environment().from_string(template).render(messages=messages, tools=tools, **kwargs)
