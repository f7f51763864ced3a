"""The prompts or pairs of a request, one after the other: from memory, a file or a concept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from engine.capture.prompts import TokenizedPrompt, tokenize_prompts
from engine.concepts.pair_files import PairFile, WrittenPairs
from engine.concepts.pairs import render_pairs
from engine.concepts.text_files import PromptFile
from engine.errors import RequestError
from engine.records.captures import Concept, Factors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.capture.request import CaptureRequest


class Item(NamedTuple):
    """What is never split between shards: a prompt, or both prompts of a pair.

    Attributes:
        texts: One text, or the positive and the negative one.
        factors: Persona, template and topic of a pair, as far as known.
    """

    texts: tuple[str, ...]
    factors: Factors | None = None


@dataclass(frozen=True)
class PromptSource:
    """Prompts as the model will read them, which must not change while they are read twice.

    Attributes:
        name: Where they come from: a file, or a concept.
        items: Yields them from the first one, each time it is called.
        stamp: Changes when the prompts are changed.
        pairs: Whether each item is a pair.
        rendered: Whether the texts hold their special tokens already.
        concept: Name of the concept, if any.
        chat_template: Hash of the chat template that rendered them; None for texts that are taken as they are.
        seed: Seed for sampling pairs, where they were sampled.
        moment: The time that the chat template was given, where it reads the clock.
        render_again: Renders the same source as of another time, where that matters.
    """

    name: str
    items: Callable[[], Iterator[Item]]
    stamp: Callable[[], tuple[int, ...]] = tuple
    pairs: bool = False
    rendered: bool = False
    concept: str | None = None
    chat_template: str | None = None
    seed: int | None = None
    moment: str | None = None
    render_again: Callable[[str], PromptSource] | None = None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, request: CaptureRequest) -> PromptSource:
        """The prompts of a request; those of a concept are sampled and rendered here, once."""
        source = request.source
        if isinstance(source, Concept):
            return _from_concept(tokenizer, source, request.max_samples, request.seed)
        if isinstance(source, WrittenPairs):
            return cls("pairs", partial(_written_items, source), pairs=True)
        if isinstance(source, PairFile):
            return cls(source.path.name, partial(_pair_items, source), source.stamp, pairs=True)
        if isinstance(source, PromptFile):
            return cls(source.path.name, partial(_prompt_items, source), source.stamp)
        texts = [source] if isinstance(source, str) else source
        return cls("prompts", lambda: (Item((text,)) for text in texts), rendered=request.rendered)

    def at(self, moment: str | None) -> PromptSource:
        """The same prompts as the chat template renders them at a given time; unchanged where time does not matter."""
        if self.moment is None or self.render_again is None or moment in (None, self.moment):
            return self
        return self.render_again(str(moment))

    @property
    def sides(self) -> int:
        """Prompts of an item."""
        return 2 if self.pairs else 1

    def tokenize(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[Item], first: int
    ) -> list[TokenizedPrompt]:
        """Token ids of all prompts of some items, the first of which has the number `first`."""
        return tokenize_prompts(
            model,
            tokenizer,
            [text for item in items for text in item.texts],
            rendered=self.rendered,
            sides=("positive", "negative") if self.pairs else ("",),
            first=first,
        )

    def require_unchanged(self, stamp: tuple[int, ...]) -> None:
        """Refuse to continue with other prompts than the capture started with.

        Raises:
            RequestError: They were changed since the stamp was taken.
        """
        if self.stamp() != stamp:
            raise RequestError(f"{self.name} was changed while it was captured", next_step="capture it again")


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
    return (Item(pair, known) for pair, known in zip(texts, factors, strict=True))


def _pair_items(file: PairFile) -> Iterator[Item]:
    return (Item((pair.positive, pair.negative), pair.factors) for pair in file.pairs())


def _prompt_items(file: PromptFile) -> Iterator[Item]:
    return (Item((text,)) for text in file.texts())
