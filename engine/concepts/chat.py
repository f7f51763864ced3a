"""How a conversation becomes the text that a model reads: the tokenizer's own chat template, or plain text.

Never falls back to another model's markup, and never renders a prompt that lacks what went in.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import string
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from engine.errors import CaptureError, Remedy, first_line
from engine.records.captures import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Message]
Turns = list[dict[str, Any]]

_CLOCK = "strftime_now"  # what transformers calls the clock in a template
_PERCENT = "\x00"  # stands for a percent sign while directives are replaced


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Messages, moment: str | None = None) -> str:
    """Write a conversation as the model was trained to read it, up to where its answer begins.

    Args:
        tokenizer: The model's tokenizer.
        messages: System (optional) and user.
        moment: See `render_chats`.

    Returns:
        The text, special tokens included as text: tokenize it without adding any.

    Raises:
        CaptureError: As `render_chats`.
    """
    return render_chats(tokenizer, [messages], moment)[0]


def render_chats(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages], moment: str | None = None
) -> list[str]:
    """Write conversations that belong together, as the two of a pair do, all in the same form.

    Forms are tried in turn until a template renders every text that went in: messages as they are, with content in
    parts, and with the system text in front of the user's, again as text and in parts. A tokenizer without a template
    belongs to a base model, which gets the texts as they are, with an empty line between.

    Args:
        tokenizer: The model's tokenizer.
        conversations: System (optional) and user messages of each.
        moment: The time that a template is told if it reads the clock, in ISO 8601; that of the call unless given.

    Returns:
        Their texts, special tokens included as text.

    Raises:
        CaptureError: The template renders them in no form, or the tokenizer has several templates and no default.
    """
    if not tokenizer.chat_template:
        return ["\n\n".join(message["content"] for message in messages) for messages in conversations]
    _require_default(tokenizer)
    reasons = []
    for form in _FORMS:
        try:
            if conversations:  # words that no template holds itself show whether it drops a message
                probe = _marked(conversations[0])
                if _rendered(tokenizer, probe, form, moment) != _rendered(tokenizer, probe, form, moment):
                    raise _UnfaithfulError("renders it differently each time")
            return [_rendered(tokenizer, messages, form, moment) for messages in conversations]
        except _UnfaithfulError as error:
            reasons.append(str(error))
        except MemoryError:
            raise
        except Exception as error:  # a template may raise anything
            reasons.append(f"refuses it: {first_line(error)}")
    as_text, in_parts = reasons[-2:]  # of the simplest conversation, a single message of the user
    raise CaptureError(
        f"the tokenizer's chat template cannot render a user's message: given as text it {as_text};"
        f" given in parts it {in_parts}",
        expected="a template that renders the whole text",
        next_step=Remedy.GIVE_RENDERED_PAIRS,
    )


def chat_template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """SHA-256 of the chat template, None for a base model."""
    template = tokenizer.chat_template
    return hashlib.sha256(str(template).encode()).hexdigest() if template else None


def reads_clock(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes the time into prompts."""
    return _CLOCK in str(tokenizer.chat_template or "")


def time_now() -> str:
    """The moment that templates are told unless another is given: local time, to the second, in ISO 8601."""
    return datetime.datetime.now().isoformat(timespec="seconds")


class _UnfaithfulError(Exception):
    """A template did not render a text that went in, or not as it did before."""


def _require_default(tokenizer: PreTrainedTokenizerBase) -> None:
    templates = tokenizer.chat_template
    if isinstance(templates, dict) and "default" not in templates:
        names = ", ".join(map(repr, templates))
        raise CaptureError(
            f"the tokenizer has the chat templates {names} and none called 'default'",
            expected="one chat template, or one called 'default'",
            next_step=f"choose one, as in tokenizer.chat_template = tokenizer.chat_template[{next(iter(templates))!r}]",
        )


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, form: Callable[[Messages], Turns], moment: str | None
) -> str:
    turns = form(messages)
    template = _with_clock(tokenizer.get_chat_template(), moment or time_now()) if reads_clock(tokenizer) else None
    text = str(tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=True))
    words = _words(text)
    if any(_words(message["content"]) not in words for message in messages):
        raise _UnfaithfulError("leaves out what the message says")
    for part in (turn["content"][0] for turn in turns if isinstance(turn["content"], list)):
        if any(written in text for written in (str(part), json.dumps(part), json.dumps(part, ensure_ascii=False))):
            raise _UnfaithfulError("writes out the list of parts itself")
    return text


def _with_clock(template: str, moment: str) -> str:
    """A template for which it is always the same time.

    transformers has a function for the clock and lets nobody pass another. A macro of that name comes before it, and
    writes each directive as it is at that time.
    """
    then = datetime.datetime.fromisoformat(moment)
    directives = [f"%{flag}{letter}" for flag in ("", "-") for letter in string.ascii_letters]
    steps = [("%%", _PERCENT), *((one, then.strftime(one)) for one in directives), (_PERCENT, "%")]
    replaced = "".join(f" | replace({json.dumps(old)}, {json.dumps(new)})" for old, new in steps)
    # Chat templates drop the line break after a block, so the macro adds nothing to the text.
    return f"{{%- macro {_CLOCK}(format) -%}}{{{{ format{replaced} }}}}{{%- endmacro %}}\n{template}"


def _marked(messages: Messages) -> list[Message]:
    """The same conversation in words that occur nowhere else."""
    return [
        Message(role=message["role"], content=f"mark {number} of layerscope") for number, message in enumerate(messages)
    ]


def _words(text: str) -> str:
    """A text without what templates may do to its white space."""
    return " ".join(text.split())


def _as_text(messages: Messages) -> Turns:
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _in_parts(messages: Messages) -> Turns:
    return [
        {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]} for message in messages
    ]


def _merged(messages: Messages) -> list[Message]:
    return [Message(role="user", content="\n\n".join(message["content"] for message in messages))]


# Some templates take content in parts only, and write nothing for a text; some refuse or drop system messages.
_FORMS: tuple[Callable[[Messages], Turns], ...] = (
    _as_text,
    _in_parts,
    lambda messages: _as_text(_merged(messages)),
    lambda messages: _in_parts(_merged(messages)),
)
