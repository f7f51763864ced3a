"""Render conversations with the tokenizer's chat template, or as plain text.

Never falls back to another model's markup, and never returns a prompt that drops part of a message.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from engine.concepts.templates import fill_template
from engine.errors import CaptureError, LayerscopeError, first_line
from engine.records.captures import Message
from engine.remedies import Remedy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Message]
Turns = list[dict[str, Any]]

_CLOCK = "strftime_now"  # name of the clock function in transformers' templates


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Messages, moment: str | None = None) -> str:
    """Render a conversation with the chat template, up to where the answer starts.

    Args:
        tokenizer: The model's tokenizer.
        messages: System (optional) and user messages.
        moment: See `render_chats`.

    Returns:
        The text, which includes the special tokens: tokenize it with `add_special_tokens=False`.

    Raises:
        CaptureError: See `render_chats`.
    """
    return render_chats(tokenizer, [messages], moment)[0]


def render_chats(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages], moment: str | None = None
) -> list[str]:
    """Render related conversations, such as those of pairs, all in the same form.

    Four forms are tried in order until the template renders every message in full: messages with content as a string;
    messages with content as a list of parts; and the system text prepended to the user's, as a string and as parts. A
    tokenizer without a template belongs to a base model: its messages are joined by an empty line.

    Args:
        tokenizer: The model's tokenizer.
        conversations: System (optional) and user messages of each conversation.
        moment: Time for templates that read the clock, in ISO 8601. Defaults to the current time.

    Returns:
        One text per conversation, special tokens included.

    Raises:
        CaptureError: No form renders every message in full, the template takes too long or too much memory, or the
            tokenizer has several templates and no default.
    """
    if not tokenizer.chat_template:
        return ["\n\n".join(message["content"] for message in messages) for messages in conversations]
    _require_default(tokenizer)
    reasons = []
    for form in _FORMS:
        try:
            if conversations:  # marker words that no template contains show whether it drops a message
                probe = _marked(conversations[0])
                first, second = _rendered(tokenizer, [probe, probe], form, moment)
                if first != second:
                    raise _UnfaithfulError("renders it differently each time")
            return _rendered(tokenizer, conversations, form, moment)
        except _UnfaithfulError as error:
            reasons.append(str(error))
        except (LayerscopeError, MemoryError):
            raise
        except Exception as error:  # a template may raise anything
            reasons.append(f"fails: {first_line(error)}")
    as_text, in_parts = reasons[-2:]  # for the simplest conversation, a single user message
    raise CaptureError(
        f"the tokenizer's chat template cannot render a user message: as a string it {as_text};"
        f" as a list of parts it {in_parts}",
        expected="a template that renders every message in full",
        next_step=Remedy.GIVE_RENDERED_PAIRS,
    )


def chat_template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """SHA-256 of the chat template; None for a base model."""
    template = tokenizer.chat_template
    return hashlib.sha256(str(template).encode()).hexdigest() if template else None


def reads_clock(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes the current time into prompts."""
    return _CLOCK in str(tokenizer.chat_template or "")


def time_now() -> str:
    """Current local time to the second, in ISO 8601: the default for templates."""
    return datetime.datetime.now().isoformat(timespec="seconds")


class _UnfaithfulError(Exception):
    """A template dropped part of a message, or did not render it the same way twice."""


def _require_default(tokenizer: PreTrainedTokenizerBase) -> None:
    templates = tokenizer.chat_template
    if isinstance(templates, dict) and "default" not in templates:
        names = ", ".join(map(repr, templates))
        raise CaptureError(
            f"the tokenizer has the chat templates {names} but none called 'default'",
            expected="one chat template, or one called 'default'",
            next_step=f"choose one: tokenizer.chat_template = tokenizer.chat_template[{next(iter(templates))!r}]",
        )


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Messages],
    form: Callable[[Messages], Turns],
    moment: str | None,
) -> list[str]:
    turns = [form(messages) for messages in conversations]
    template = tokenizer.get_chat_template()
    if _has_own_renderer(tokenizer):
        options: dict[str, Any] = {"chat_template": template, "tokenize": False, "add_generation_prompt": True}
        texts = [str(tokenizer.apply_chat_template(each, **options)) for each in turns]
    else:
        texts = fill_template(template, turns, tokenizer.special_tokens_map, moment or time_now())
    for messages, given, text in zip(conversations, turns, texts, strict=True):
        _require_faithful(messages, given, text)
    return texts


def _has_own_renderer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a class of its own renders the chat, such as Mistral's, without a template from the model's files."""
    from transformers import PreTrainedTokenizerBase

    renderer = getattr(tokenizer.apply_chat_template, "__func__", None)
    return renderer is not PreTrainedTokenizerBase.apply_chat_template


def _require_faithful(messages: Messages, turns: Turns, text: str) -> None:
    words = _words(text)
    if any(_words(message["content"]) not in words for message in messages):
        raise _UnfaithfulError("drops the text of a message")
    for part in (turn["content"][0] for turn in turns if isinstance(turn["content"], list)):
        if any(written in text for written in (str(part), json.dumps(part), json.dumps(part, ensure_ascii=False))):
            raise _UnfaithfulError("prints the list literally")


def _marked(messages: Messages) -> list[Message]:
    """The same conversation with unique marker words as content."""
    return [
        Message(role=message["role"], content=f"mark {number} of layerscope") for number, message in enumerate(messages)
    ]


def _words(text: str) -> str:
    """A text with white space normalized, which templates may change."""
    return " ".join(text.split())


def _as_text(messages: Messages) -> Turns:
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _in_parts(messages: Messages) -> Turns:
    return [
        {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]} for message in messages
    ]


def _merged(messages: Messages) -> list[Message]:
    return [Message(role="user", content="\n\n".join(message["content"] for message in messages))]


# Some templates accept content only as parts and render nothing for a string; some reject or drop system messages.
_FORMS: tuple[Callable[[Messages], Turns], ...] = (
    _as_text,
    _in_parts,
    lambda messages: _as_text(_merged(messages)),
    lambda messages: _in_parts(_merged(messages)),
)
