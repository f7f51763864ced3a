"""How a conversation becomes the text that a model reads: the tokenizer's own chat template, or plain text.

Knows tokenizers. Never falls back to another model's markup.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from engine.errors import CaptureError, Remedy
from engine.records.concepts import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """Write a conversation as the model was trained to read it, up to where its answer begins.

    A template that refuses or drops system messages gets the system text in front of the user's. A tokenizer without a
    template belongs to a base model, which gets the texts as they are, with an empty line between.

    Args:
        tokenizer: The model's tokenizer.
        messages: System (optional) and user.

    Returns:
        The text, special tokens included as text: tokenize it without adding any.

    Raises:
        CaptureError: The template refuses even a single message of the user.
    """
    if not tokenizer.chat_template:
        return "\n\n".join(message["content"] for message in messages)
    with suppress(TemplateError):
        text = _apply(tokenizer, messages)
        if all(message["content"].strip() in text for message in messages):  # some drop the system message silently
            return text
    merged = Message(role="user", content="\n\n".join(message["content"] for message in messages))
    try:
        return _apply(tokenizer, [merged])
    except TemplateError as error:
        raise CaptureError(
            f"the tokenizer's chat template refuses a message of the user: {error}",
            next_step=Remedy.GIVE_RENDERED_PAIRS,
        ) from error


def chat_template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """SHA-256 of the chat template, None for a base model."""
    template = tokenizer.chat_template
    return hashlib.sha256(str(template).encode()).hexdigest() if template else None


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    turns = [{"role": message["role"], "content": message["content"]} for message in messages]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
