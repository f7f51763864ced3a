"""A conversation is written as the tokenizer's own template writes it, and as plain text where there is none."""

import hashlib

import pytest
from transformers import PreTrainedTokenizerFast

from engine.concepts.catalog import load_concept
from engine.concepts.chat import chat_template_hash, render_chat
from engine.concepts.pairs import draw_pairs
from engine.records.concepts import Message
from tests.conftest import Loaded

SYSTEM = Message(role="system", content="You are honest.")
USER = Message(role="user", content="How old is this car?")

# As Gemma's: turns marked, system messages refused.
NO_SYSTEM_ROLE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<{{ message['role'] }}>{{ message['content'] }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<model>{% endif %}"
)


def test_the_default_model_reads_what_its_template_writes(smollm2: Loaded) -> None:
    for pair in draw_pairs(load_concept("honesty"), 8):
        for messages in (pair.positive, pair.negative):
            turns = [{"role": message["role"], "content": message["content"]} for message in messages]
            expected = smollm2.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            assert render_chat(smollm2.tokenizer, messages) == expected


def test_the_text_ends_where_the_answer_begins(smollm2: Loaded) -> None:
    text = render_chat(smollm2.tokenizer, [SYSTEM, USER])
    assert text == (
        "<|im_start|>system\nYou are honest.<|im_end|>\n"
        "<|im_start|>user\nHow old is this car?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_template_that_refuses_system_messages_gets_the_text_before_the_users(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_tokenizer, "chat_template", NO_SYSTEM_ROLE)
    text = render_chat(tiny_tokenizer, [SYSTEM, USER])
    assert text == "<user>You are honest.\n\nHow old is this car?<model>"
    assert render_chat(tiny_tokenizer, [USER]) == "<user>How old is this car?<model>"


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
