#!/usr/bin/env python3
"""What the models' own chat templates make of some talks, by Jinja as Transformers sets it up.

    make_chat.py NAME=FILE.jinja... >data/chat.json

NAME is the template's name in `lora`. The texts of the templates stay where they are; what they give is kept."""
import json
import sys

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

S, U, A = "system", "user", "assistant"
TALKS = [
    [(U, "Hi")],
    [(S, "Be brief."), (U, "Hi")],
    [(S, ""), (U, "Hi")],
    [(U, "Hi"), (A, "Hello.")],
    [(S, "Be brief."), (U, "Hi"), (A, "Hello.")],
    [(S, "Be brief."), (U, "Hi"), (A, "Hello."), (U, "2+2?")],
    [(S, "Be brief."), (U, "Hi"), (A, "Hello."), (U, "2+2?"), (A, "4")],
    [(U, "a"), (A, "b"), (U, "c"), (A, "d"), (U, "e"), (A, "f")],
    [(S, " \n two  spaces \t"), (U, "\n\u00a0before and after \n\n"), (A, "  so \u3000\n"), (U, " ?\r\n"), (A, "\n")],
    [(U, "it's \"quoted\" {{ and }} {% braced %} \u00e9\u4f60\U0001f600 <b> & \\n")],
    [(U, "a"), (A, "b"), (S, "Now be long."), (U, "c")],
    [(U, "a"), (U, "b")],
    [(A, "Hello.")],
    [(U, "a"), (A, "<think>\nso\n</think>\n\nb"), (U, "c"), (A, "<think>\n\nwell\n</think>d")],
    [(U, "a"), ("robot", "b")],
]


def refuse(message):
    raise jinja2.exceptions.TemplateError(message)


def main():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    env.filters["tojson"] = lambda x, **k: json.dumps(x, ensure_ascii=False)
    env.globals["raise_exception"] = refuse
    talks = []
    for talk in TALKS:      # and what stands before each answer, and with it
        for n in range(1, len(talk) + 1):
            part = [{"role": role, "content": content} for role, content in talk[:n]]
            if (n == len(talk) or talk[n][0] == A or talk[n - 1][0] == A) and part not in talks:
                talks.append(part)
    texts = []
    for word in sys.argv[1:]:
        name, path = word.split("=", 1)
        template = env.from_string(open(path, encoding="utf-8").read())
        rendered = []
        for talk in talks:
            for ask in (False, True):
                try:
                    rendered.append(template.render(messages=talk, tools=None, documents=None, bos_token="<s>",
                                                    eos_token="</s>", add_generation_prompt=ask))
                except jinja2.exceptions.TemplateError:
                    rendered.append(None)
        texts.append({"name": name, "rendered": rendered})
    json.dump({"jinja": jinja2.__version__, "bos": "<s>", "eos": "</s>", "talks": talks, "templates": texts}, sys.stdout,
              ensure_ascii=False, indent=0)
    print()


main()
