"""How a conversation becomes the text that a model reads: the tokenizer's own chat template, or plain text.

Knows tokenizers. Never falls back to another model's markup.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from engine.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """Write a conversation as the model was trained to read it, up to where its answer begins.

    A template that refuses system messages gets the system text in front of the user's. A tokenizer without a template
    belongs to a base model, which gets the texts as they are, with an empty line between.

    Args:
        tokenizer: The model's tokenizer.
        messages: System (optional) and user.

    Returns:
        The text, special tokens included as text: tokenize it without adding any.
    """
    if not tokenizer.chat_template:
        return "\n\n".join(message["content"] for message in messages)
    try:
        return _apply(tokenizer, messages)
    except TemplateError:
        merged = Message(role="user", content="\n\n".join(message["content"] for message in messages))
        return _apply(tokenizer, [merged])


def chat_template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """SHA-256 of the chat template, None for a base model."""
    template = tokenizer.chat_template
    return hashlib.sha256(str(template).encode()).hexdigest() if template else None


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    turns = [{"role": message["role"], "content": message["content"]} for message in messages]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
