"""Readable text of each token, and the tokens that say little about a text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.concepts.chat import render_chat
from engine.errors import CaptureError, visible
from engine.records.captures import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Span = tuple[int, int]
_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a single byte, in vocabularies made by SentencePiece


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], tokens: Sequence[str]) -> list[str]:
    r"""Undo the spelling of the vocabulary, such as `Ġ` for a space and `Ã©` for é.

    Args:
        tokenizer: The tokenizer.
        ids: Token ids.
        tokens: Their spelling in the vocabulary.

    Returns:
        The text of each token. Control characters and the bytes of a character that is split between tokens are
        escapes such as `\xf0`.

    Example:
        >>> tokens = ["Ġcaf", "Ã©", "ĠðŁĺ", "Ģ"]
        >>> token_texts(tokenizer, tokenizer.convert_tokens_to_ids(tokens), tokens)
        [' caf', 'é', ' \\xf0\\x9f\\x98', '\\x80']
    """
    added = tokenizer.added_tokens_decoder
    alphabet = _byte_alphabet() if _is_byte_level(tokenizer) else {}
    return [
        visible(token if number in added and alphabet else _text(token, alphabet))
        for number, token in zip(ids, tokens, strict=True)
    ]


def tokens_to_set_aside(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    ids: Sequence[int],
    *,
    roles: Sequence[Sequence[str]] = (),
    moment: str | None = None,
) -> list[int]:
    """Find the tokens that say little about a text.

    They are the first token, whose state is an outlier in many models, special tokens, and the markup that the chat
    template adds to the messages: role headers, a default system message, and the start of the answer. Tokens that
    are partly markup are kept. If the prompt does not look like the template's, only special tokens are set aside.

    Args:
        tokenizer: The tokenizer.
        prompt: The text, with special tokens if it went through the chat template.
        ids: Its token ids.
        roles: Roles of the messages that the template may have rendered, such as `[["user"], ["system", "user"]]`;
            empty if the text did not go through the template.
        moment: Time given to the template, in ISO 8601.

    Returns:
        Indices of the tokens, ascending.

    Example:
        >>> from engine.concepts.chat import render_chat
        >>> prompt = render_chat(tokenizer, [{"role": "user", "content": "Tell me a story"}])
        >>> ids = tokenizer(prompt)["input_ids"]
        >>> aside = tokens_to_set_aside(tokenizer, prompt, ids, roles=[["user"]])
        >>> tokenizer.decode([number for place, number in enumerate(ids) if place not in aside])
        'Tell me a story'
    """
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    aside = {0, *(place for place, number in enumerate(ids) if number in special)}
    messages = _messages(tokenizer, prompt, roles, moment)
    places = _places(tokenizer, prompt, ids) if messages else None
    if places is not None:
        aside |= {
            place
            for place, (start, stop) in enumerate(places)
            if not any(start < end and stop > begin for begin, end in messages)
        }
    return sorted(aside)


def _text(token: str, alphabet: dict[str, int]) -> str:
    if alphabet:
        known = all(sign in alphabet for sign in token)
        return bytes(alphabet[sign] for sign in token).decode(errors="backslashreplace") if known else token
    if match := _FALLBACK.fullmatch(token):
        return bytes([int(match[1], 16)]).decode(errors="backslashreplace")
    return token.replace("▁", " ")


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return "ByteLevel" in repr(getattr(backend, "decoder", None)) or hasattr(tokenizer, "byte_decoder")


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level vocabularies spell bytes with.

    Printable bytes stand for themselves in Latin-1; the others are numbered from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _places(tokenizer: PreTrainedTokenizerBase, prompt: str, ids: Sequence[int]) -> list[_Span] | None:
    """Characters that each token covers; None if the tokenizer does not say."""
    if not tokenizer.is_fast:
        return None
    encoded = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    same = [*encoded["input_ids"]] == [*ids]
    return [(int(start), int(stop)) for start, stop in encoded["offset_mapping"]] if same else None


def _messages(
    tokenizer: PreTrainedTokenizerBase, prompt: str, roles: Sequence[Sequence[str]], moment: str | None
) -> list[_Span]:
    """Characters of each message in a rendered prompt; empty if its markup is not found.

    Of several forms that fit, the one with the most markup is right: a default system message is markup that would
    also fit as a message.
    """
    found: list[_Span] = []
    most = -1
    for form in roles:
        markup = _markup(tokenizer, form, moment)
        spans = _between(prompt, markup)
        if spans and sum(map(len, markup)) > most:
            found, most = spans, sum(map(len, markup))
    return found


def _markup(tokenizer: PreTrainedTokenizerBase, roles: Sequence[str], moment: str | None) -> list[str]:
    """What the template writes before, between and after the messages; empty if it cannot be told."""
    marks = [f"mark-{number}-of-layerscope" for number in range(len(roles))]
    messages = [Message(role=role, content=mark) for role, mark in zip(roles, marks, strict=True)]
    try:
        rest = render_chat(tokenizer, messages, moment)
    except CaptureError:
        return []
    markup = []
    for mark in marks:
        if rest.count(mark) != 1:
            return []
        before, rest = rest.split(mark)
        markup.append(before)
    return [*markup, rest]


def _between(prompt: str, markup: list[str]) -> list[_Span]:
    """Characters between the pieces of markup; empty if the prompt does not consist of them in one way only."""
    if not markup or not (prompt.startswith(markup[0]) and prompt.endswith(markup[-1])):
        return []
    start, end = len(markup[0]), len(prompt) - len(markup[-1])
    spans = []
    for piece in markup[1:-1]:
        if not piece.strip() or prompt.count(piece, start, end) != 1:
            return []
        place = prompt.index(piece, start, end)
        spans.append((start, place))
        start = place + len(piece)
    return [*spans, (start, end)] if start <= end else []
