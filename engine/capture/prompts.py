"""How a text becomes token ids, and which texts are refused before any time is spent on them.

Knows tokenizers and the longest prompt a model takes. Does not know chat templates: texts come ready to be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import CaptureError

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
    side: str = "",
    first: int = 0,
) -> list[TokenizedPrompt]:
    """Tokenize texts one by one, without padding or truncation.

    Args:
        model: The model they are for, which limits their length.
        tokenizer: Its tokenizer.
        texts: What the model shall read.
        rendered: Whether the texts went through a chat template and so hold their special tokens. Other texts get the
            special tokens that the tokenizer adds, unless they begin with its first token already.
        side: "positive" or "negative", to name a prompt of a pair in an error.
        first: Number of the first text, where these are a part of a longer list.

    Raises:
        CaptureError: A text is empty or too long; the message names it.
    """
    limit = longest_prompt(model, tokenizer)
    label = f"{side} prompt".strip()
    numbered = enumerate(texts, first)
    return [_tokenize(tokenizer, text, f"{label} {number}", limit, rendered) for number, text in numbered]


def longest_prompt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Most tokens in one prompt: what the model has positions for, else what its tokenizer says."""
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(positions or tokenizer.model_max_length)


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str, label: str, limit: int, rendered: bool) -> TokenizedPrompt:
    if not isinstance(text, str) or not text:
        raise CaptureError(f"{label} is empty", expected="a text with at least one token")
    name = f"{label} ({excerpt(text)})"
    begins = bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token))
    ids = list(tokenizer(text, add_special_tokens=not (rendered or begins), verbose=False)["input_ids"])
    if not ids:
        raise CaptureError(f"{name} has no tokens", expected="a text with at least one token")
    if limit < _NO_LIMIT and len(ids) > limit:
        raise CaptureError(
            f"{name} has {len(ids)} tokens, more than the model's {limit}",
            next_step="shorten it: nothing is cut off silently",
        )
    return TokenizedPrompt(name, text, ids, list(tokenizer.convert_ids_to_tokens(ids)))


def excerpt(text: str, width: int = 60) -> str:
    """A prompt as an error message names it: its beginning, in quotes, on one line."""
    return repr(text if len(text) <= width else text[: width - 1] + "…")
