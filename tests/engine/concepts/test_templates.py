"""Chat templates give the text that transformers gives, and a hostile one is stopped."""

import io
import json
import os
import sys
import threading
from copy import deepcopy
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from engine.concepts import templates
from engine.concepts.chat import render_chats
from engine.concepts.template_worker import answer, compile_template, serve
from engine.concepts.templates import TemplateError, fill_template
from engine.errors import CaptureError
from engine.records.captures import Message
from tests.conftest import Loaded

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CHAT = [{"role": "system", "content": "You are  honest.\n"}, {"role": "user", "content": "How old is «this» car? 日本"}]
USER = [CHAT[1]]
SEVERAL = [*CHAT, {"role": "assistant", "content": "Ten."}, {"role": "user", "content": "Sure?"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Hello <b>"}]}]

CHATML = """{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {% endif %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' -}}
{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
LLAMA2 = """{%- if messages[0]['role'] == 'system' -%}
{%- set loop_messages = messages[1:] %}{% set system = messages[0]['content'] -%}
{%- else %}{% set loop_messages = messages %}{% set system = false %}{% endif -%}
{%- for message in loop_messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}
{%- if loop.index0 == 0 and system -%}
{% set content = '<<SYS>>\\n' ~ system ~ '\\n<</SYS>>\\n\\n' ~ message['content'] %}
{%- else %}{% set content = message['content'] %}{% endif -%}
{%- if message['role'] == 'user' -%}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif -%}
{%- endfor -%}"""
MISTRAL = """{{ bos_token }}{% for message in messages if message.role != "system" %}
{% if message['role'] == 'user' %}{{ '[INST] %s [/INST]' % message.content }}
{% else %}{{ message.content | string }}{{ eos_token }}{% endif %}
{% endfor %}{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='role') | list | tojson }}"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"""
LOOP_CONTROLS = """{% for message in messages %}{% if message.role == 'system' %}{% continue %}{% endif %}
  {{ message.content }}
{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}{{ range(3) | list }}{{ 3 | random * 0 }}"""
GENERATION = """{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}
{% endgeneration %}{% else %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"""
MACROS = """{%- macro turn(role, content='-') -%}<{{ role }}|{{ content | indent(2) }}>{%- endmacro -%}
{%- set ns = namespace(seen=0, system='') -%}{%- set extra = dict(a=1, b=[1, 2]) -%}
{%- for m in messages -%}{%- set ns.seen = ns.seen + 1 -%}{{ turn(m.role, m.content) }}
{%- if m.role == 'system' -%}{%- set ns.system = m.content -%}{%- endif -%}{%- endfor -%}
{{ ns.seen }}{{ ns.system | upper }}{{ extra | tojson(indent=2) }}{{ dict.fromkeys(['a'], 1) }}
{%- if tools is not none or documents is defined and documents %}tools{% endif %}{{ undefined_name }}"""
IN_PARTS = """{% for m in messages %}{% for p in m.content %}
{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}"""
UNDERSCORE = "{% set ns = namespace() %}{% set ns._x = 1 %}"
ESCAPE = "{{ ''.__class__.__mro__ }}{{ messages.append(1) }}"
KNOWN = [CHATML, LLAMA2, MISTRAL, GEMMA, LOOP_CONTROLS, GENERATION, MACROS, IN_PARTS, UNDERSCORE, ESCAPE, "{% if %}"]


def theirs(template: str, conversation: list[dict[str, Any]]) -> dict[str, Any]:
    """What transformers gives, in the form of `answer`."""
    try:
        options: dict[str, Any] = {"chat_template": template, "add_generation_prompt": True, **TOKENS}
        texts = render_jinja_template([conversation], **options)[0]
    except Exception as error:  # a template may raise anything
        return {"error": str(error).splitlines()[0]}
    return {"texts": list(texts)}


@pytest.mark.parametrize("conversation", [CHAT, USER, SEVERAL, PARTS], ids=["chat", "user", "several", "parts"])
def test_the_text_is_that_of_transformers(smollm2: Loaded, conversation: list[dict[str, Any]]) -> None:
    given = 0
    for template in [*KNOWN, smollm2.tokenizer.get_chat_template()]:
        ours = answer(
            {"template": template, "conversations": [deepcopy(conversation)], "tokens": TOKENS, "moment": None}
        )
        expected = theirs(template, conversation)
        assert ours.keys() == expected.keys(), template
        assert ours.get("texts") == expected.get("texts")
        given += "texts" in ours
    assert given >= 5


def test_the_environment_is_that_of_transformers() -> None:
    """A filter, test, global or setting that a new version adds is missed here first."""
    ours, expected = compile_template("").environment, _compile_jinja_template("").environment
    assert ours.filters.keys() == expected.filters.keys()
    assert ours.tests.keys() == expected.tests.keys()
    assert ours.globals.keys() == expected.globals.keys()
    for setting in (
        "trim_blocks",
        "lstrip_blocks",
        "keep_trailing_newline",
        "autoescape",
        "undefined",
        "newline_sequence",
    ):
        assert getattr(ours, setting) == getattr(expected, setting)
    tags = [{tag for each in one.extensions.values() for tag in each.tags} for one in (ours, expected)]
    assert tags[0] == tags[1]
    assert type(ours) is type(expected)


HOSTILE = {
    "recursion": "{% macro again() %}{{ again() }}{{ again() }}{% endmacro %}{{ again() }}",
    "loops": "{% set r = range(99999) | list %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "power": "{% set x = 9 ** (9 ** 9) %}",
    "comparison": "{% set ns = namespace(x=[], y=[]) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "doubling": "{% set ns = namespace(x='ab') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "constant": "{{ 'a' * 2 ** 40 }}",
    "join": "{{ range(99999) | join('a' * 99999) }}",
    "replace": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "format": "{{ '%999999999999d' % 1 }}{{ '%99999999999s' | format(1) }}",
    "indent": "{{ messages | tojson(indent=999999999) }}",
    "padding": "{{ 'a'.ljust(2 ** 31) }}",
    "nested": "{% set ns = namespace(x=['a']) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{{ ns.x }}",
    "output": "{% for i in range(9000) %}{{ 'a' * 9000 }}{% endfor %}",
}
SLOW = ("loops", "power", "comparison", "nested")  # these run until they are stopped


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "doubling" else ()) for name in HOSTILE]
)
def test_a_hostile_template_is_stopped(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "_SECONDS", 0.5 if name in SLOW else 60.0)
    monkeypatch.setattr(tiny_tokenizer, "chat_template", HOSTILE[name] + "{{ messages[0]['content'] }}")
    with pytest.raises(CaptureError, match=r"(template was stopped: it (takes|needs|writes)|cannot render)") as caught:
        render_chats(tiny_tokenizer, [[Message(role="user", content="Hello")]])
    assert "render the prompts yourself" in caught.value.said()
    monkeypatch.setattr(templates, "_SECONDS", 60.0)
    assert fill_template("{{ messages[0].content }}", [USER], {}) == [USER[0]["content"]]


def test_an_interrupt_leaves_no_answer_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_worker: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(templates._Worker, "_memory", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fill_template(HOSTILE["loops"], [USER], {})
    assert fill_template("second", [USER], {}) == ["second"]


def test_a_template_that_needs_much_memory_is_stopped_where_the_system_has_no_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(templates, "_MOST_BYTES", 1000)
    with pytest.raises(CaptureError, match="needs more than 512 MB"):
        fill_template(HOSTILE["loops"], [USER], {})


def test_a_process_that_was_killed_is_started_again() -> None:
    assert fill_template("{{ 1 }}", [USER], {}) == ["1"]
    worker = templates._desk.worker
    assert worker is not None
    worker.process.kill()
    worker.process.wait()
    assert fill_template("{{ 2 }}", [USER], {}) == ["2"]
    with pytest.raises(CaptureError, match="ended the process that renders it"):
        templates._desk.ask(b"not json\n", 60.0)


def test_a_process_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_desk", templates._Desk())
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(CaptureError, match=r"cannot be started.*render the prompts yourself"):
        fill_template("", [USER], {})


def test_threads_get_the_answers_to_their_own_questions() -> None:
    found: dict[int, list[str]] = {}

    def ask(number: int) -> None:
        for _ in range(10):
            found.setdefault(number, []).extend(fill_template(f"{number}", [USER], {}))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [str(number)] * 10 for number in range(4)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_a_worker_of_its_own() -> None:
    fill_template("", [USER], {})
    mine = templates._desk.worker
    with templates._desk.turn:  # held by another thread at the time of the fork
        child = os.fork()
        if child == 0:
            os._exit(0 if templates._desk.worker is None and fill_template("a", [USER], {}) == ["a"] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert fill_template("b", [USER], {}) == ["b"]
    assert templates._desk.worker is mine


def test_the_error_of_a_template_is_its_own() -> None:
    with pytest.raises(TemplateError, match="System role not supported"):
        fill_template(GEMMA, [CHAT], TOKENS)


def test_the_worker_answers_a_question_a_line() -> None:
    questions: list[dict[str, Any]] = [
        {"template": text, "conversations": [USER], "tokens": {}, "moment": None, "seconds": 60}
        for text in ("é", "{{ 1 / 0 }}")
    ]
    answers = io.BytesIO()
    serve(io.BytesIO(b"".join(json.dumps(question).encode() + b"\n" for question in questions)), answers)
    assert [json.loads(line) for line in answers.getvalue().splitlines()] == [
        {"texts": ["é"]},
        {"error": "division by zero"},
    ]


def test_a_text_may_be_long_if_its_messages_are() -> None:
    long = [{"role": "user", "content": "long " * 10**6}]
    asked: dict[str, Any] = {
        "template": "{{ messages[0].content }}",
        "conversations": [long],
        "tokens": {},
        "moment": None,
    }
    assert answer(asked)["texts"] == [long[0]["content"]]
    assert (
        "writes 5000000 characters"
        in answer({**asked, "template": "{{ 'long ' * 10 ** 6 }}", "conversations": [USER]})["limit"]
    )


def test_a_class_that_renders_by_itself_is_asked(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as Mistral's, whose tokenizer holds the format of a chat."""
    monkeypatch.setattr(tiny_tokenizer, "chat_template", "unused")
    monkeypatch.setattr(tiny_tokenizer, "apply_chat_template", lambda turns, **_: f"[{turns[0]['content']}]")
    assert render_chats(tiny_tokenizer, [[Message(role="user", content="Hello")]]) == ["[Hello]"]
