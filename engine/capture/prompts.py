"""Tokenize prompts, and check that the prompts of pairs differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from engine.errors import CaptureError, RequestError, first_line
from engine.records.captures import ResponseText

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.capture.selection import Positions


_NO_LIMIT = 10**9  # tokenizers without a limit report 10**30


class TokenizedPrompt(NamedTuple):
    """A text with its token ids and token strings.

    Attributes:
        label: Its place, such as "positive prompt 3" or "the prompt in questions.txt, line 3".
        text: The text.
        ids: Token ids, those of the response included.
        tokens: Token strings as in the tokenizer's vocabulary.
        response: The response that the last tokens belong to; None without one.
    """

    label: str
    text: str
    ids: list[int]
    tokens: list[str]
    response: ResponseText | None = None

    @property
    def name(self) -> str:
        """Name in error messages: its place and an excerpt."""
        return _name(self.label, self.text)

    def __str__(self) -> str:
        """Return the name: error messages are rare, so no name is made before it is needed."""
        return self.name

    @property
    def boundary(self) -> int | None:
        """Number of tokens before the response; None without one."""
        return None if self.response is None else len(self.ids) - self.response["tokens"]

    def span(self, positions: Positions) -> tuple[int, int]:
        """First token to keep and the token after the last.

        Raises:
            RequestError: The prompt does not have these tokens, or has no response.
        """
        return positions.span(len(self.ids), self, self.boundary)

    def kept(self, positions: Positions) -> int:
        """Number of states to keep per layer.

        Raises:
            RequestError: See `span`.
        """
        return positions.kept(len(self.ids), self, self.boundary)

    def followed_by(self, ids: Sequence[int], tokens: Sequence[str], response: ResponseText) -> TokenizedPrompt:
        """The prompt with the tokens of a response."""
        return self._replace(ids=[*self.ids, *ids], tokens=[*self.tokens, *tokens], response=response)


def _name(label: str, text: str) -> str:
    return f"{label} ({excerpt(text)})"


def tokenize_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    rendered: bool,
    labels: Sequence[str] | None = None,
) -> list[TokenizedPrompt]:
    """Tokenize texts without padding or truncation.

    Args:
        model: The model, which limits the length of prompts.
        tokenizer: Its tokenizer.
        texts: The texts.
        rendered: Whether the texts went through a chat template and already contain special tokens. The tokenizer adds
            special tokens to other texts, except to those that already start with its BOS token.
        labels: Names of the texts in error messages; numbers by default.

    Raises:
        CaptureError: A text is empty, too long or not valid UTF-8, or a token has no embedding; the message names the
            text.
    """
    labels = [f"prompt {place}" for place in range(len(texts))] if labels is None else labels
    _require_texts(labels, texts)
    _require_tokenizer(tokenizer)
    rows = _encode(tokenizer, texts, rendered)
    _require_tokens(labels, texts, rows)
    limit = longest_prompt(model, tokenizer)
    _require_length(rows, limit, lambda place: _name(labels[place], texts[place]))
    known = list(set[int]().union(*rows))
    _require_embedded(model, tokenizer, labels, texts, rows, max(known, default=0))
    spelt = dict(zip(known, tokenizer.convert_ids_to_tokens(known), strict=True))
    tokens = [[*map(spelt.__getitem__, row)] for row in rows]
    return [*map(TokenizedPrompt, labels, texts, rows, tokens)]


def append_responses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[TokenizedPrompt], texts: Sequence[str]
) -> list[TokenizedPrompt]:
    """Append given responses to tokenized prompts.

    Each response is tokenized alone, without special tokens, so that its tokens do not depend on the prompt.

    Args:
        model: The model, which limits the length of prompts.
        tokenizer: Its tokenizer.
        prompts: The prompts.
        texts: A response to each.

    Raises:
        CaptureError: A response is empty or not valid UTF-8, a token has no embedding, or a prompt with its response is
            too long; the message names the prompt.
    """
    labels = [f"the response to {prompt}" for prompt in prompts]
    _require_texts(labels, texts)
    rows = _encode(tokenizer, texts, rendered=True)
    _require_tokens(labels, texts, rows)
    whole = [[*prompt.ids, *row] for prompt, row in zip(prompts, rows, strict=True)]
    limit = longest_prompt(model, tokenizer)
    _require_length(whole, limit, lambda place: f"{prompts[place]}, with its response,")
    _require_embedded(model, tokenizer, labels, texts, rows, max((token for row in rows for token in row), default=0))
    return [
        prompt.followed_by(
            row, tokenizer.convert_ids_to_tokens(row), ResponseText(text=text, tokens=len(row), ended=None)
        )
        for prompt, row, text in zip(prompts, rows, texts, strict=True)
    ]


def _require_tokenizer(tokenizer: object) -> None:
    if not callable(tokenizer) or not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise RequestError(
            f"the tokenizer is a {type(tokenizer).__name__}: {str(tokenizer)[:60]!r}",
            expected="a transformers tokenizer",
            next_step="pass the second value that load_model_and_tokenizer returns",
        )


def _require_texts(labels: Sequence[str], texts: Sequence[str]) -> None:
    """Refuse empty texts and those that are not valid UTF-8."""
    if all(texts) and _is_encodable("".join(texts)):  # one check for all
        return
    for label, text in zip(labels, texts, strict=True):
        if not text:
            raise CaptureError(f"{label} is empty", expected="a text with at least one token")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise CaptureError(
                f"{_name(label, text)} contains a lone surrogate: {error.reason}",
                expected="a text that can be encoded as UTF-8",
                next_step="remove it, or add the other half of the surrogate pair",
            ) from error


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], rendered: bool) -> list[list[int]]:
    """Token ids of each text, encoded in bulk to use all CPU cores."""
    try:
        return _encoded(tokenizer, texts, rendered)
    except Exception as error:  # a tokenizer may raise anything
        raise CaptureError(
            f"the tokenizer cannot encode the prompts: {type(error).__name__}: {first_line(error)}",
            expected="the complete tokenizer that the model was trained with",
            next_step="download its files again",
        ) from error


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], rendered: bool) -> list[list[int]]:
    beginning = str(tokenizer.bos_token or "")
    whole = [rendered or (bool(beginning) and text.startswith(beginning)) for text in texts]
    if len(set(whole)) < 2:  # the usual case
        return _token_ids(tokenizer, [*texts], special=False in whole)
    rows: list[list[int]] = [[] for _ in texts]
    for special in (False, True):
        chosen = [place for place, one in enumerate(whole) if one is not special]
        for place, row in zip(
            chosen, _token_ids(tokenizer, [texts[place] for place in chosen], special=special), strict=True
        ):
            rows[place] = row
    return rows


def _token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool) -> list[list[int]]:
    """Token ids of each text, with or without special tokens.

    Texts after the first go directly to the Rust tokenizer behind a fast one, whose truncation and padding the first
    text turns off. Without offsets and masks, which no capture reads, it needs two thirds of the time.
    """
    if not texts:
        return []
    direct = len(texts) > 1 and _is_plain(tokenizer)
    through = texts[:1] if direct else texts
    rows = [list(row) for row in tokenizer(through, add_special_tokens=special, verbose=False)["input_ids"]]
    if direct:
        encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts[1:], add_special_tokens=special)
        rows += [encoding.ids for encoding in encodings]
    return rows


def _is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether calling a tokenizer only calls a Rust tokenizer: a fast one with transformers' own steps."""
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    steps = {"__call__": PreTrainedTokenizerBase, "_encode_plus": PreTrainedTokenizerFast}
    return isinstance(tokenizer, PreTrainedTokenizerFast) and all(
        step not in vars(tokenizer) and getattr(type(tokenizer), step) is getattr(owner, step)
        for step, owner in steps.items()
    )


def _require_tokens(labels: Sequence[str], texts: Sequence[str], rows: Sequence[list[int]]) -> None:
    if not all(rows):
        place = next(place for place, row in enumerate(rows) if not row)
        blank = "" if texts[place].strip() else ": it is only white space, which the tokenizer drops"
        raise CaptureError(
            f"{_name(labels[place], texts[place])} has no tokens{blank}", expected="a text with at least one token"
        )


def _require_length(rows: Sequence[list[int]], limit: int, name: Callable[[int], str]) -> None:
    if limit >= _NO_LIMIT or max(map(len, rows), default=0) <= limit:
        return
    place = next(place for place, row in enumerate(rows) if len(row) > limit)
    raise CaptureError(
        f"{name(place)} has {len(rows[place])} tokens, more than the model's {limit}",
        next_step="shorten it; prompts are never truncated silently",
    )


def _require_embedded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    texts: Sequence[str],
    rows: Sequence[list[int]],
    largest: int,
) -> None:
    """Refuse token ids without an embedding, as of tokens added to the tokenizer."""
    embedded = _embedded_tokens(model)
    if embedded is None or largest < embedded:
        return
    place = next(place for place, row in enumerate(rows) if max(row) >= embedded)
    token = max(rows[place])
    raise CaptureError(
        f"{_name(labels[place], texts[place])} contains the token {tokenizer.convert_ids_to_tokens(token)!r} with the"
        f" id {token}, but the model only has embeddings for the ids 0 to {embedded - 1}",
        expected="the tokenizer that the model was trained with",
        next_step="remove the token, or load a model that was trained with it",
    )


def _embedded_tokens(model: PreTrainedModel) -> int | None:
    """Number of token ids with an embedding; None if the model does not say."""
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    count = getattr(embedding, "num_embeddings", None)
    return count if isinstance(count, int) else None


def longest_prompt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Maximum tokens of a prompt, from the model's positions or its tokenizer."""
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(positions or tokenizer.model_max_length)


def excerpt(text: str, width: int = 60) -> str:
    """The quoted start of a text on one line, for error messages."""
    return repr(text if len(text) <= width else text[: width - 1] + "…")


_EXPECTED = "prompts that differ in the contrasted concept"


class PairCheck:
    """Compares the prompts of pairs by token ids, in constant memory."""

    def __init__(self) -> None:
        self._balance = 0  # sum of positive hashes minus sum of negative hashes: 0 if both classes are identical
        self._identical = ""

    def add(self, prompts: Sequence[TokenizedPrompt], name: Callable[[int], str]) -> None:
        """Add pairs.

        Args:
            prompts: Positive and negative prompts, alternating.
            name: Names one of these pairs by its place among them.
        """
        for place, (positive, negative) in enumerate(zip(prompts[0::2], prompts[1::2], strict=True)):
            self._balance += hash(tuple(positive.ids)) - hash(tuple(negative.ids))
            if positive.ids == negative.ids and not self._identical:
                self._identical = f"{name(place)} has {_in_words(positive.text, negative.text)}"

    def require_contrast(self) -> None:
        """Refuse pairs without a contrast.

        Raises:
            CaptureError: Both classes have the same prompts in any order, or the two prompts of a pair are identical.
        """
        if self._balance == 0:
            raise CaptureError("both classes have identical prompts: there is nothing to contrast", expected=_EXPECTED)
        if self._identical:
            raise CaptureError(self._identical, expected=_EXPECTED, next_step="correct or remove that pair")


def _in_words(positive: str, negative: str) -> str:
    if positive == negative:
        return f"the same prompt in both classes ({excerpt(positive)})"
    return f"two prompts with the same tokens ({excerpt(positive)}, {excerpt(negative)})"
