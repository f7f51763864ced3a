"""Conversations are rendered by the tokenizer's own template, or as plain text without one."""

import hashlib

import pytest
from transformers import PreTrainedTokenizerFast

from engine.concepts.catalog import load_concept
from engine.concepts.chat import chat_template_hash, reads_clock, render_chat, render_chats
from engine.concepts.pairs import draw_pairs
from engine.errors import CaptureError
from engine.records.captures import Message
from tests.conftest import Loaded

SYSTEM = Message(role="system", content="You are honest.")
USER = Message(role="user", content="How old is this car?")

# Like Gemma's: marks turns, rejects system messages.
NO_SYSTEM_ROLE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<{{ message['role'] }}>{{ message['content'] }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<model>{% endif %}"
)


def test_the_default_model_uses_its_own_template(smollm2: Loaded) -> None:
    for pair in draw_pairs(load_concept("honesty"), 8):
        for messages in (pair.positive, pair.negative):
            turns = [{"role": message["role"], "content": message["content"]} for message in messages]
            expected = smollm2.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            assert render_chat(smollm2.tokenizer, messages) == expected


def test_the_text_ends_where_the_answer_starts(smollm2: Loaded) -> None:
    text = render_chat(smollm2.tokenizer, [SYSTEM, USER])
    assert text == (
        "<|im_start|>system\nYou are honest.<|im_end|>\n"
        "<|im_start|>user\nHow old is this car?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_template_that_rejects_system_messages_gets_the_system_text_in_the_user_message(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_tokenizer, "chat_template", NO_SYSTEM_ROLE)
    text = render_chat(tiny_tokenizer, [SYSTEM, USER])
    assert text == "<user>You are honest.\n\nHow old is this car?<model>"
    assert render_chat(tiny_tokenizer, [USER]) == "<user>How old is this car?<model>"


PARTS = (
    "{% for m in messages %}<{{ m['role'] }}>"
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}"
)
FIRST_PART = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'][0]['text'] }}{% endfor %}"
PARTS_WITHOUT_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<user>{{ m['content'][0]['text'] }}{% endif %}{% endfor %}"
)
STRIPPED = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'].split() | join(' ') }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (PARTS, "<system>You are honest.<user>How old is this car?"),
        (FIRST_PART, "<system>You are honest.<user>How old is this car?"),
        (PARTS_WITHOUT_SYSTEM, "<user>You are honest.\n\nHow old is this car?"),
        (STRIPPED, "<system>You are honest.<user>How old is this car?"),
        # With content in parts, this template prints the list literally and still loses the system text.
        ("{{ messages[-1]['content'] }}", "You are honest.\n\nHow old is this car?"),
    ],
)
def test_a_template_gets_messages_in_a_form_that_it_renders_in_full(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, template: str, expected: str
) -> None:
    monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
    assert render_chat(tiny_tokenizer, [SYSTEM, USER]) == expected


def test_both_prompts_of_a_pair_are_rendered_in_the_same_form(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The template drops the second system text, so both conversations get it prepended to the user's."""
    template = NO_SYSTEM_ROLE.replace("message['role'] == 'system'", "'liar' in message['content'] and loop.length > 1")
    monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
    other = Message(role="system", content="You are a liar.")
    texts = render_chats(tiny_tokenizer, [[SYSTEM, USER], [other, USER]])
    assert [text.count("<system>") for text in texts] == [0, 0]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "{{ messages[0]['role'] }}",
            "as a string it drops the text of a message; as a list of parts it drops",
        ),
        ("{{ messages[0]['content'] | upper }}", "drops the text of a message"),
        ("{{ tools | length }}{{ messages[0]['content'] }}", "fails: object of type 'NoneType' has no len"),
        ("{{ 1 // 0 }}", "fails: .*zero"),
        ("{% for message in messages %}", "fails: Unexpected end of template"),
        ("{{ raise_exception('not today') }}", "fails: not today"),
        (
            {"rag": "{{ messages }}", "tool_use": ""},
            "'rag', 'tool_use' but none called 'default'.*chat_template.'rag'.",
        ),
    ],
)
def test_a_template_that_renders_no_message_in_full_is_refused_with_the_reason(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, template: object, said: str
) -> None:
    monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
    with pytest.raises(CaptureError, match=said):
        render_chat(tiny_tokenizer, [SYSTEM, USER])


def test_the_default_of_several_named_templates_is_used(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_tokenizer, "chat_template", {"rag": "", "default": "<u>{{ messages[0]['content'] }}"})
    assert render_chat(tiny_tokenizer, [USER]) == "<u>How old is this car?"


def test_a_template_renders_the_given_time(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = """
        {%- macro today(form) %}{{ strftime_now(form) }}{% endmacro %}
{{ today('%d %b %Y') }} {{ strftime_now(format="%-d. %A, %Hh") }}: {{ messages[0]['content'] }}"""
    for before in ("", "\n", "  "):
        monkeypatch.setattr(tiny_tokenizer, "chat_template", before + template)
        assert reads_clock(tiny_tokenizer)
        text = render_chat(tiny_tokenizer, [USER], "2026-02-03T04:05:06")
        assert text == "03 Feb 2026 3. Tuesday, 04h: How old is this car?"
        turns = [{"role": "user", "content": USER["content"]}]
        assert render_chat(tiny_tokenizer, [USER]) == tiny_tokenizer.apply_chat_template(turns, tokenize=False)


def test_a_base_model_gets_plain_text(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert render_chat(tiny_tokenizer, [SYSTEM, USER]) == "You are honest.\n\nHow old is this car?"
    assert render_chat(tiny_tokenizer, [USER]) == "How old is this car?"


def test_the_hash_names_the_template(
    smollm2: Loaded, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = smollm2.tokenizer.chat_template
    assert isinstance(template, str)
    assert chat_template_hash(smollm2.tokenizer) == hashlib.sha256(template.encode()).hexdigest()
    assert chat_template_hash(tiny_tokenizer) is None
    monkeypatch.setattr(tiny_tokenizer, "chat_template", NO_SYSTEM_ROLE)
    assert chat_template_hash(tiny_tokenizer) not in (None, chat_template_hash(smollm2.tokenizer))


def test_a_random_template_is_refused(tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts of a pair would differ in more than the concept, and runs would not be reproducible."""
    template = "{{ range(100000) | random }} {% for message in messages %}{{ message['content'] }}{% endfor %}"
    monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
    with pytest.raises(CaptureError, match="renders it differently each time"):
        render_chat(tiny_tokenizer, [USER])


def test_a_dropped_text_is_noticed_even_if_the_template_contains_it(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_tokenizer, "chat_template", "<user><assistant>")
    with pytest.raises(CaptureError, match="drops the text of a message"):
        render_chat(tiny_tokenizer, [Message(role="user", content="a")])
