"""Render chat templates in a program of its own, which can be stopped at any moment.

The environment equals that of `transformers.utils.chat_template_utils`, which takes seconds to import. Tests compare
the two.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import json
import signal
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import IO, Any

import jinja2
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MOST_BYTES = 2**29  # memory of this program
_MOST_CHARACTERS = 4_000_000  # of a text, apart from what the messages themselves contain
_MOST_COPIES = 10  # of the messages in a text
_MOST_IN_ALL = 2**26


class _Generation(Extension):
    """The tag that marks what a model generated; it changes no text."""

    tags = {"generation"}  # noqa: RUF012 - as jinja declares it

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return caller()


class _Dict:
    """`dict` without the attributes of a class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:  # noqa: ANN401 - a template passes them
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:  # noqa: ANN401
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """A namespace that holds no names with underscores in front."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401, N805, RUF100 - `self` may be among kwargs
        self, attributes = args[0], dict(*args[1:], **kwargs)
        for name in attributes:
            _require_plain(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:  # noqa: ANN401
        _require_plain(name)
        super().__setitem__(name, value)


def _require_plain(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot store {name!r}")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,  # noqa: ANN401
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _clock(moment: str | None) -> Callable[[str], str]:
    def strftime_now(format: str) -> str:  # noqa: A002 - templates pass it by this name
        then = datetime.datetime.fromisoformat(moment) if moment else datetime.datetime.now()
        return then.strftime(format)

    return strftime_now


@lru_cache(maxsize=8)
def compile_template(template: str) -> jinja2.Template:
    """Compile a template as transformers does."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _clock(None),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment.from_string(template)


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Render the conversations of one question.

    Args:
        question: `template`, `conversations`, `tokens` (the special tokens by name) and the `moment` or None.

    Returns:
        `texts`; or `error`, the template's own error; or `limit`, the limit that it exceeded.
    """
    texts: list[str] = []
    try:
        template = compile_template(question["template"])
        known = {"tools": None, "documents": None, "add_generation_prompt": True, **question["tokens"]}
        known |= {"strftime_now": _clock(question["moment"])} if question["moment"] else {}
        for messages in question["conversations"]:
            text = template.render(known, messages=messages)
            texts.append(text)
            most = _MOST_CHARACTERS + _MOST_COPIES * len(str(messages))
            if len(text) > most or sum(map(len, texts)) > _MOST_IN_ALL:
                return {"limit": f"writes {len(text)} characters for one conversation"}
    except MemoryError:
        return {"limit": "needs more than 512 MB of memory"}
    except Exception as error:  # a template may raise anything
        return {"error": next(iter(str(error).strip().splitlines()), type(error).__name__)}
    return {"texts": texts}


def serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answer one question a line until there are no more.

    The program ends when a question takes longer than its `seconds`, even if nobody is left to stop it.
    """
    for line in questions:
        question = json.loads(line)
        faulthandler.dump_traceback_later(question["seconds"], exit=True)
        try:
            said = json.dumps(answer(question)).encode()
        except MemoryError:
            said = b'{"limit": "needs more than 512 MB of memory"}'
        faulthandler.cancel_dump_traceback_later()
        answers.write(said + b"\n")
        answers.flush()


def limit_memory() -> None:
    """Limit the memory of this process where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the program that asks
    limit_memory()
    serve(sys.stdin.buffer, sys.stdout.buffer)
