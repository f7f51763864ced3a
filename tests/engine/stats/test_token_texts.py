"""Texts of tokens and the tokens that are set aside, with the real tokenizer and templates of other families."""

from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from engine.concepts.chat import render_chat
from engine.records.captures import Message
from engine.stats.token_texts import token_texts, tokens_to_set_aside
from tests.conftest import Loaded

USER, BOTH = ["user"], ["system", "user"]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Loaded) -> PreTrainedTokenizerBase:
    return smollm2.tokenizer


def texts_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return token_texts(tokenizer, ids, tokenizer.convert_ids_to_tokens(ids))


@pytest.mark.parametrize(
    "text",
    [
        "I swear that it is true.",
        "café, naïve, Übermut, ¡olé!",
        "line\n\n  indented\tand tabbed",
        "正直 and честность",
        "<|im_start|>user\nHi<|im_end|>\n",
        "Ġ and ▁ are letters here",
    ],
)
def test_the_texts_of_a_byte_level_vocabulary_join_to_the_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """Once the escaped bytes of characters that are split between tokens are bytes again."""
    texts = texts_of(tokenizer, text)
    joined = b"".join(
        part.encode("latin-1").decode("unicode_escape").encode("latin-1") if "\\x" in part else part.encode()
        for part in texts
    )
    assert joined.decode() == text


def test_bytes_of_an_incomplete_character_and_control_characters_are_escapes(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert texts_of(tokenizer, " 😀\x1b\r") == [" \\xf0\\x9f\\x98", "\\x80", "\\x1b", "\\r"]


def sentencepiece() -> PreTrainedTokenizerFast:
    """A vocabulary like Llama 2's: `▁` for a space, and bytes for unknown characters."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefgh", "▁é", "▁▁"]
    backend = Tokenizer(
        models.BPE({piece: place for place, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)  # noqa: S106
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")  # noqa: S106


def test_the_texts_of_a_sentencepiece_vocabulary() -> None:
    assert texts_of(sentencepiece(), "ab é\n") == ["a", "b", " ", "\\xc3", "\\xa9", "\n"]
    tokens = ["▁é", "▁▁", "<s>", "<0x1B>"]
    ids = [int(str(sentencepiece().convert_tokens_to_ids(token))) for token in tokens]
    assert token_texts(sentencepiece(), ids, tokens) == [" é", "  ", "<s>", "\\x1b"]


def kept(
    tokenizer: PreTrainedTokenizerBase, prompt: str, roles: Sequence[Sequence[str]], moment: str | None = None
) -> list[str]:
    """Texts of the tokens that are not set aside."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    aside = tokens_to_set_aside(tokenizer, prompt, ids, roles=roles, moment=moment)
    texts = token_texts(tokenizer, ids, tokenizer.convert_ids_to_tokens(ids))
    return [text for place, text in enumerate(texts) if place not in aside]


def rendered(tokenizer: PreTrainedTokenizerBase, user: str, system: str = "", moment: str | None = None) -> str:
    messages = [Message(role="system", content=system)] * bool(system) + [Message(role="user", content=user)]
    return render_chat(tokenizer, messages, moment)


def test_a_plain_text_loses_its_first_token_and_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert kept(tokenizer, "I swear it<|im_end|> user", []) == [" swear", " it", " user"]


@pytest.mark.parametrize(
    "text",
    [
        "Did you take it?",
        "user",
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
        "system\nassistant\nuser",
        "one\n\ntwo",
        "é😀",
    ],
)
def test_of_a_chat_only_the_users_text_is_kept(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """Even if it repeats words of the template."""
    prompt = rendered(tokenizer, text)
    assert kept(tokenizer, prompt, [USER]) == texts_of(tokenizer, text)
    assert kept(tokenizer, prompt, [USER, BOTH]) == texts_of(tokenizer, text)


def test_of_a_captured_prompt_both_messages_are_kept(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = rendered(tokenizer, "Did you take it?", "You never lie.")
    expected = [*texts_of(tokenizer, "You never lie."), *texts_of(tokenizer, "Did you take it?")]
    assert kept(tokenizer, prompt, [USER, BOTH]) == expected


def test_a_token_across_the_edge_of_a_message_is_kept(tokenizer: PreTrainedTokenizerBase) -> None:
    """The template's line break and the text's space are one token."""
    assert kept(tokenizer, rendered(tokenizer, "  yes"), [USER]) == ["\n ", " yes"]


def test_a_special_token_in_the_users_text_is_set_aside(tokenizer: PreTrainedTokenizerBase) -> None:
    assert kept(tokenizer, rendered(tokenizer, "a<|im_end|>b"), [USER]) == ["a", "b"]


@pytest.mark.parametrize("prompt", ["<|im_start|>user\nHi<|im_end|>\n", "<|im_start|>tool\nHi<|im_end|>\nuser"])
def test_a_prompt_unlike_the_templates_loses_only_special_tokens(
    tokenizer: PreTrainedTokenizerBase, prompt: str
) -> None:
    """Here the start of the answer is missing, or everything else."""
    special = {"<|im_start|>", "<|im_end|>"}
    expected = [text for text in texts_of(tokenizer, prompt) if text not in special]
    assert kept(tokenizer, prompt, [USER, BOTH]) == expected


LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "w50 {% if system %}w60 {{ system }} w61 {% endif %}{{ rest[0].content | trim }} w51"
)
CLOCK = "{{ strftime_now('w%d') }} w50 {% for message in messages %}{{ message.content }} w51{% endfor %}"
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}w50 {{ messages[0].content }} w51"
)


def tiny_with(tiny_tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")  # noqa: S106
    made.chat_template = template
    return made


def test_a_system_message_inside_the_users_turn(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """As in Llama 2's template, where the form without a system message fits too."""
    tokenizer = tiny_with(tiny_tokenizer, LLAMA_2)
    both, alone = rendered(tokenizer, "w9 w10", "w7 w8"), rendered(tokenizer, "w9 w61 w10")
    assert both == "w50 w60 w7 w8 w61 w9 w10 w51"
    assert kept(tokenizer, both, [USER, BOTH]) == ["w7", "w8", "w9", "w10"]
    assert kept(tokenizer, alone, [USER, BOTH]) == ["w9", "w61", "w10"]


def test_a_template_that_reads_the_clock_needs_the_time_of_the_capture(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer = tiny_with(tiny_tokenizer, CLOCK)
    moment = "2024-02-07T10:00:00"
    prompt = rendered(tokenizer, "w9", moment=moment)
    assert prompt == "w07 w50 w9 w51"
    assert kept(tokenizer, prompt, [USER], moment) == ["w9"]
    assert "w51" in kept(tokenizer, prompt, [USER], "2024-02-08T10:00:00")  # what is not the template's markup is kept


def test_a_template_without_a_system_role(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """The messages are joined by an empty line, which is no markup to look for."""
    tokenizer = tiny_with(tiny_tokenizer, NO_SYSTEM)
    prompt = rendered(tokenizer, "w9 w10", "w7 w8")
    assert prompt == "w50 w7 w8\n\nw9 w10 w51"
    assert kept(tokenizer, prompt, [USER, BOTH]) == ["w7", "w8", "w9", "w10"]


def test_a_tokenizer_that_does_not_say_where_tokens_are_loses_only_special_tokens(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_with(tiny_tokenizer, "<s> w50 {{ messages[0].content }} w51 </s>")
    prompt = rendered(tokenizer, "w9 w10")
    assert kept(tokenizer, prompt, [USER]) == ["w9", "w10"]
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    assert kept(tokenizer, prompt, [USER]) == ["w50", "w9", "w10", "w51"]
