"""The prompts of a capture in shards: read once to check and fingerprint all of them, and again to run them.

Holds some prompts or pairs at a time. Does not know plans or shards.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from engine.capture.prompts import PairCheck, TokenizedPrompt, tokenize_prompts
from engine.capture.selection import Positions
from engine.concepts.pair_files import PairFile, WrittenPairs, names_factors
from engine.concepts.pairs import render_pairs
from engine.concepts.text_files import PromptFile
from engine.errors import RequestError
from engine.inputs import plain_texts, require_whole
from engine.records.captures import Concept, Factors
from engine.records.files import PromptList
from engine.runtime import Steps

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Source = Concept | WrittenPairs | PairFile | PromptFile | Sequence[str]
"""What can be captured: a concept, pairs, prompts."""

_AT_ONCE = 256  # prompts or pairs
_UNKNOWN = Factors(template="", persona="", topic="")


class Item(NamedTuple):
    """What is never cut in two: a prompt, or the two of a pair.

    Attributes:
        texts: One text, or the positive and the negative one.
        factors: What a pair was made from, as far as that is known.
    """

    texts: tuple[str, ...]
    factors: Factors | None = None


@dataclass(frozen=True)
class PromptSource:
    """Prompts that must not change while they are read twice.

    Attributes:
        name: What they come from: a file, or a concept.
        items: Hands them over from the first, each time it is called.
        stamp: What differs when they were changed.
        pairs: Whether they are the sides of pairs.
        concept: Name of the concept that they are of, if any.
        chat_template: Hash of the template that they went through; None for texts that are taken as they are.
        seed: Of the draw of pairs, where they were drawn.
        moment: The time that the template was told, where it reads the clock.
        render_again: Makes the same source as of another time, where that changes it.
    """

    name: str
    items: Callable[[], Iterator[Item]]
    stamp: Callable[[], tuple[int, ...]]
    pairs: bool = False
    concept: str | None = None
    chat_template: str | None = None
    seed: int | None = None
    moment: str | None = None
    render_again: Callable[[str], PromptSource] | None = None

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, source: Source, max_samples: int | None = None, seed: int = 0
    ) -> PromptSource:
        """Whatever can be captured.

        Args:
            tokenizer: The model's.
            source: What it is.
            max_samples: Most pairs of a concept; None for every combination.
            seed: Of their draw.
        """
        if isinstance(source, Concept):
            return cls.of_concept(tokenizer, source, max_samples, seed)
        if isinstance(source, PairFile):
            return cls.of_pairs(source)
        if isinstance(source, WrittenPairs):
            return cls.of_written(source)
        return cls.of_prompts(source) if isinstance(source, PromptFile) else cls.of_texts(source)

    @classmethod
    def of_texts(cls, texts: Sequence[str]) -> PromptSource:
        """Prompts that are in memory, taken as they are."""
        plain = plain_texts(texts)
        return cls("prompts", lambda: (Item((text,)) for text in plain), lambda: ())

    @classmethod
    def of_written(cls, pairs: WrittenPairs) -> PromptSource:
        """Pairs that are in memory, taken as they are."""

        def items() -> Iterator[Item]:
            texts = zip(pairs.positive, pairs.negative, strict=True)
            factors = pairs.factors or [_UNKNOWN] * len(pairs.positive)
            return (Item(pair, known) for pair, known in zip(texts, factors, strict=True))

        return cls("pairs", items, lambda: (), pairs=True)

    @classmethod
    def of_prompts(cls, file: PromptFile) -> PromptSource:
        """The prompts of a file, taken as they are."""
        return cls(file.path.name, lambda: (Item((text,)) for text in file.texts()), file.stamp)

    @classmethod
    def of_pairs(cls, file: PairFile) -> PromptSource:
        """The pairs of a file, taken as they are."""

        def items() -> Iterator[Item]:
            return (Item((pair.positive, pair.negative), pair.factors) for pair in file.pairs())

        return cls(file.path.name, items, file.stamp, pairs=True)

    @classmethod
    def of_concept(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        concept: Concept,
        max_samples: int | None,
        seed: int,
        moment: str | None = None,
    ) -> PromptSource:
        """Pairs drawn from a concept, in the form that the model was trained to read."""
        drawn = render_pairs(tokenizer, concept, max_samples, seed, moment)

        def items() -> Iterator[Item]:
            texts = zip(drawn.positive, drawn.negative, strict=True)
            return (Item(pair, factors) for pair, factors in zip(texts, drawn.factors, strict=True))

        return cls(
            concept.name,
            items,
            lambda: (),
            pairs=True,
            concept=concept.name,
            chat_template=drawn.chat_template,
            seed=require_whole(seed, "the seed"),
            moment=drawn.moment,
            render_again=partial(cls.of_concept, tokenizer, concept, max_samples, seed),
        )

    def at(self, moment: str | None) -> PromptSource:
        """The same prompts as a template writes them at a given time; themselves where the time does not matter."""
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
        """Token ids of all prompts of some items, of which the first has this number."""
        return tokenize_prompts(
            model,
            tokenizer,
            [text for item in items for text in item.texts],
            rendered=self.chat_template is not None,
            sides=("positive", "negative") if self.pairs else ("",),
            first=first,
        )

    def require_unchanged(self, stamp: tuple[int, ...]) -> None:
        """Refuse to go on with other prompts than were begun with.

        Raises:
            RequestError: They were changed since the stamp was taken.
        """
        if self.stamp() != stamp:
            raise RequestError(f"{self.name} was changed while it was captured", next_step="capture it again")


def survey_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: PromptSource,
    positions: Positions,
    steps: Steps | None = None,
) -> PromptList:
    """Check, count and fingerprint every prompt, holding some items at a time.

    Args:
        model: What they are for.
        tokenizer: Its tokenizer.
        source: The prompts.
        positions: What is kept of each.
        steps: Told now and then how many were counted.

    Raises:
        CaptureError: A prompt is empty or too long, or pairs contrast nothing.
        RequestError: A file cannot be read, or a prompt does not have the positions.
    """
    check = PairCheck()
    texts, ids, factors = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    count, tokens, most, kept, named = 0, 0, 0, 0, False
    items, number = source.items(), 0
    while part := list(islice(items, _AT_ONCE)):
        if steps is not None:
            steps("counting prompts", number * source.sides, 0)
        prompts = source.tokenize(model, tokenizer, part, number)
        if source.pairs:
            check.add(prompts)
        for prompt in prompts:
            encoded = prompt.text.encode()
            texts.update(len(encoded).to_bytes(8, "little") + encoded)
            ids.update(len(prompt.ids).to_bytes(8, "little") + array("q", prompt.ids).tobytes())
            count += 1
            tokens += len(prompt.ids)
            own = positions.kept(len(prompt.ids), prompt.name)
            most = max(most, own)
            kept += own
        for known in filter(None, (item.factors for item in part)):
            factors.update(msgspec.json.encode(known))
            named = named or names_factors(known)
        number += len(part)
    if source.pairs:
        check.require_contrast()
    return PromptList(
        file=source.name,
        pairs=source.pairs,
        count=count,
        tokens=tokens,
        kept=most,
        kept_in_all=kept,
        texts=texts.hexdigest(),
        ids=ids.hexdigest(),
        factors=factors.hexdigest() if named else "",
    )
