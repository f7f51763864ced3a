"""Iterate over the prompts or pairs of a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from engine.capture.prompts import TokenizedPrompt, append_responses, excerpt, tokenize_prompts
from engine.concepts.pair_files import PairFile, WrittenPairs
from engine.concepts.pairs import render_pairs
from engine.concepts.rows import lines_of
from engine.concepts.text_files import PromptFile
from engine.errors import RequestError
from engine.records.captures import Concept, Factors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.capture.request import CaptureRequest


ONE_PROMPT = "the prompt"
"""Name of the source of a single text."""


class Item(NamedTuple):
    """A prompt or a pair, which is never split between shards.

    Attributes:
        texts: One text, or the positive and the negative text of a pair.
        factors: Persona, template and topic of a pair, if known.
        responses: A given response to each text; empty without responses.
        line: Number of its line or row in a file; 0 if it is not from a file.
    """

    texts: tuple[str, ...]
    factors: Factors | None = None
    responses: tuple[str, ...] = ()
    line: int = 0


@dataclass(frozen=True)
class PromptSource:
    """Rendered prompts, read more than once, which must not change in between.

    Attributes:
        name: Name of their file or concept.
        items: Returns a new iterator over all items on each call.
        stamp: Returns a value that changes when the prompts change.
        pairs: Whether each item is a pair.
        rendered: Whether the texts already contain special tokens.
        lines: What comes before the number of a line in its name, if they are from a file; see `lines_of`.
        concept: Name of the concept, if any.
        chat_template: Hash of the chat template that rendered them; None if none was applied.
        seed: Seed for sampling pairs, if they were sampled.
        moment: The time passed to the chat template, if it reads the clock.
        render_again: Renders the same source for another time, if the time matters.
    """

    name: str
    items: Callable[[], Iterator[Item]]
    stamp: Callable[[], tuple[int, ...]] = tuple
    pairs: bool = False
    rendered: bool = False
    lines: str = ""
    concept: str | None = None
    chat_template: str | None = None
    seed: int | None = None
    moment: str | None = None
    render_again: Callable[[str], PromptSource] | None = None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, request: CaptureRequest) -> PromptSource:
        """Make the source of a request; sample and render the pairs of a concept."""
        source = request.source
        if isinstance(source, Concept):
            return _from_concept(tokenizer, source, request.max_samples, request.seed)
        if isinstance(source, WrittenPairs):
            return cls("pairs", partial(_written_items, source), pairs=True)
        if isinstance(source, PairFile):
            items = partial(_pair_items, source)
            return cls(source.path.name, items, source.stamp, pairs=True, lines=lines_of(source.path))
        if isinstance(source, PromptFile):
            return cls(source.path.name, partial(_prompt_items, source), source.stamp, lines=lines_of(source.path))
        if isinstance(source, str):
            return cls(ONE_PROMPT, lambda: iter([Item((source,))]), rendered=request.rendered)
        return cls("prompts", lambda: (Item((text,)) for text in source), rendered=request.rendered)

    def at(self, moment: str | None) -> PromptSource:
        """The same prompts rendered for a given time.

        Returns the source unchanged if the chat template reads no clock.
        """
        if self.moment is None or self.render_again is None or moment in (None, self.moment):
            return self
        return self.render_again(str(moment))

    @property
    def sides(self) -> int:
        """Number of prompts per item."""
        return 2 if self.pairs else 1

    def tokenize(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[Item], first: int
    ) -> list[TokenizedPrompt]:
        """Tokenize the prompts of some items, numbered from `first`, and append given responses."""
        prompts = tokenize_prompts(
            model,
            tokenizer,
            [text for item in items for text in item.texts],
            rendered=self.rendered,
            labels=[self.label(what, item, number) for number, item in enumerate(items, first) for what in self._what],
        )
        responses = [text for item in items for text in item.responses]
        return append_responses(model, tokenizer, prompts, responses) if responses else prompts

    @property
    def _what(self) -> tuple[str, ...]:
        return ("positive prompt", "negative prompt") if self.pairs else ("prompt",)

    def label(self, what: str, item: Item, number: int) -> str:
        """Name of a prompt or pair in error messages, with the place where it is written, if that is known.

        Args:
            what: What it is, such as "positive prompt".
            item: Its item.
            number: Number of the item.
        """
        if item.line:
            return f"the {what} in {self.lines} {item.line}"
        if self.name == ONE_PROMPT:
            return self.name
        if self.concept is None or item.factors is None:
            return f"{what} {number}"
        persona, template, topic = (item.factors[name] for name in ("persona", "template", "topic"))
        return f"{what} {number} of {self.concept}, persona {persona!r}, template {template!r}, topic {excerpt(topic)}"

    def require_unchanged(self, stamp: tuple[int, ...]) -> None:
        """Refuse prompts that changed since a capture started.

        Raises:
            RequestError: The prompts changed since the stamp was taken.
        """
        if self.stamp() != stamp:
            raise RequestError(f"{self.name} was changed during the capture", next_step="capture it again")


def _from_concept(
    tokenizer: PreTrainedTokenizerBase, concept: Concept, max_samples: int | None, seed: int, moment: str | None = None
) -> PromptSource:
    sampled = render_pairs(tokenizer, concept, max_samples, seed, moment)

    def items() -> Iterator[Item]:
        texts = zip(sampled.positive, sampled.negative, strict=True)
        return (Item(pair, factors) for pair, factors in zip(texts, sampled.factors, strict=True))

    return PromptSource(
        concept.name,
        items,
        pairs=True,
        rendered=sampled.chat_template is not None,
        concept=concept.name,
        chat_template=sampled.chat_template,
        seed=seed,
        moment=sampled.moment,
        render_again=partial(_from_concept, tokenizer, concept, max_samples, seed),
    )


def _written_items(pairs: WrittenPairs) -> Iterator[Item]:
    factors = pairs.factors or [None] * len(pairs.positive)
    texts = zip(pairs.positive, pairs.negative, strict=True)
    responses = zip(pairs.positive_responses or (), pairs.negative_responses or (), strict=True)
    return map(Item, texts, factors, responses if pairs.positive_responses else repeat(()))


def _pair_items(file: PairFile) -> Iterator[Item]:
    return (Item((pair.positive, pair.negative), pair.factors, pair.responses, pair.line) for pair in file.pairs())


def _prompt_items(file: PromptFile) -> Iterator[Item]:
    return (Item((prompt.text,), responses=prompt.responses, line=prompt.line) for prompt in file.prompts())
