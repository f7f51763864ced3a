"""Tokenize prompts, and check that pairs contrast something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import CaptureError, RequestError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_NO_LIMIT = 10**9  # tokenizers without a limit say 10**30


@dataclass(frozen=True)
class TokenizedPrompt:
    """A text with its token ids and their strings, as the tokenizer's vocabulary spells them.

    Attributes:
        name: What an error message calls it: its place in the list it came in, and how it begins.
        text: The text.
        ids: Token ids.
        tokens: Token strings.
    """

    name: str
    text: str
    ids: list[int]
    tokens: list[str]


def tokenize_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    rendered: bool,
    sides: Sequence[str] = ("",),
    first: int = 0,
) -> list[TokenizedPrompt]:
    """Tokenize texts, without padding or truncation.

    Args:
        model: The model they are for, which limits their length.
        tokenizer: Its tokenizer.
        texts: What the model shall read.
        rendered: Whether the texts went through a chat template and so hold their special tokens. Other texts get the
            special tokens that the tokenizer adds, unless they begin with its first token already.
        sides: What an error calls the texts, in turn: "positive" and "negative" where they are those of pairs.
        first: Number of the first text or pair, where these are a part of a longer list.

    Raises:
        CaptureError: A text is empty or too long, holds half a character, or a token that the model has no embedding
            for; the message names it.
    """
    names = [
        _name(f"{sides[place % len(sides)]} prompt {first + place // len(sides)}".strip(), text)
        for place, text in enumerate(texts)
    ]
    _require_tokenizer(tokenizer)
    try:
        rows = _encode(tokenizer, texts, rendered)
    except Exception as error:  # a tokenizer may raise anything
        raise CaptureError(
            f"the tokenizer cannot encode the prompts: {type(error).__name__}: {first_line(error)}",
            expected="the tokenizer that the model was trained with, whole",
            next_step="fetch its files again",
        ) from error
    _require_length(names, rows, longest_prompt(model, tokenizer))
    known = list({token for row in rows for token in row})
    _require_embedded(model, tokenizer, names, rows, max(known, default=0))
    spelt = dict(zip(known, tokenizer.convert_ids_to_tokens(known), strict=True))
    return [
        TokenizedPrompt(name, text, row, [spelt[token] for token in row])
        for name, text, row in zip(names, texts, rows, strict=True)
    ]


def _require_tokenizer(tokenizer: object) -> None:
    if not callable(tokenizer) or not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise RequestError(
            f"the tokenizer is a {type(tokenizer).__name__}: {str(tokenizer)[:60]!r}",
            expected="a tokenizer of transformers",
            next_step="load it with load_model_and_tokenizer, the second of what that returns",
        )


def _name(label: str, text: str) -> str:
    if not text:
        raise CaptureError(f"{label} is empty", expected="a text with at least one token")
    name = f"{label} ({excerpt(text)})"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CaptureError(
            f"{name} holds half a character: {error.reason}",
            expected="a text that UTF-8 can write",
            next_step="remove it, or join it with its other half",
        ) from error
    return name


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], rendered: bool) -> list[list[int]]:
    """Token ids of each text; many at a time, which a tokenizer may spread over the processor's cores."""
    beginning = str(tokenizer.bos_token or "")
    whole = [rendered or (bool(beginning) and text.startswith(beginning)) for text in texts]
    rows: list[list[int]] = [[] for _ in texts]
    for special in (False, True):
        chosen = [place for place, one in enumerate(whole) if one is not special]
        if chosen:
            encoded = tokenizer([texts[place] for place in chosen], add_special_tokens=special, verbose=False)
            for place, row in zip(chosen, encoded["input_ids"], strict=True):
                rows[place] = list(row)
    return rows


def _require_length(names: Sequence[str], rows: Sequence[list[int]], limit: int) -> None:
    for name, row in zip(names, rows, strict=True):
        if not row:
            raise CaptureError(f"{name} has no tokens", expected="a text with at least one token")
        if limit < _NO_LIMIT and len(row) > limit:
            raise CaptureError(
                f"{name} has {len(row)} tokens, more than the model's {limit}",
                next_step="shorten it: nothing is cut off silently",
            )


def _require_embedded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    rows: Sequence[list[int]],
    largest: int,
) -> None:
    """Refuse tokens beyond the embedding: a tokenizer may have been given tokens that its model was not."""
    embedded = _embedded_tokens(model)
    if embedded is None or largest < embedded:
        return
    name, row = next((name, row) for name, row in zip(names, rows, strict=True) if max(row) >= embedded)
    token = max(row)
    raise CaptureError(
        f"{name} holds the token {tokenizer.convert_ids_to_tokens(token)!r} with the id {token}, and the model embeds"
        f" the ids 0 to {embedded - 1} only",
        expected="the tokenizer that the model was trained with",
        next_step="leave the token out, or load a model that was trained with it",
    )


def _embedded_tokens(model: PreTrainedModel) -> int | None:
    """How many token ids a model has an embedding for; None where it does not say."""
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    count = getattr(embedding, "num_embeddings", None)
    return count if isinstance(count, int) else None


def longest_prompt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Most tokens in one prompt: what the model has positions for, else what its tokenizer says."""
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(positions or tokenizer.model_max_length)


def excerpt(text: str, width: int = 60) -> str:
    """A prompt as an error message names it: its beginning, in quotes, on one line."""
    return repr(text if len(text) <= width else text[: width - 1] + "…")


_EXPECTED = "two prompts that differ in what the contrast is about"


class PairCheck:
    """Compares the prompts of pairs by their token ids, without holding them: there may be any number."""

    def __init__(self) -> None:
        self._pairs = 0
        self._balance = 0  # hashes of the positive prompts minus those of the negative: 0 for the same prompts
        self._identical = ""

    def add(self, prompts: Sequence[TokenizedPrompt]) -> None:
        """Look at more pairs.

        Args:
            prompts: The positive and the negative prompt of each pair in turn.
        """
        for positive, negative in zip(prompts[0::2], prompts[1::2], strict=True):
            self._balance += hash(tuple(positive.ids)) - hash(tuple(negative.ids))
            if positive.ids == negative.ids and not self._identical:
                self._identical = f"pair {self._pairs} has {_in_words(positive.text, negative.text)}"
            self._pairs += 1

    def require_contrast(self) -> None:
        """Refuse what has been looked at if it holds no contrast.

        Raises:
            CaptureError: Both classes have the same prompts, in whatever order, or both prompts of a pair are the same.
        """
        if self._balance == 0:
            raise CaptureError("both classes have identical prompts: there is nothing to contrast", expected=_EXPECTED)
        if self._identical:
            raise CaptureError(self._identical, expected=_EXPECTED, next_step="correct that pair, or leave it out")


def _in_words(positive: str, negative: str) -> str:
    if positive == negative:
        return f"the same prompt in both classes ({excerpt(positive)})"
    return f"two prompts with the same tokens ({excerpt(positive)}, {excerpt(negative)})"
