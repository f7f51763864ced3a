"""One capture as a request: what to run, what to keep, how to run it, where to save it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.capture.selection import (
    DEFAULT_POSITIONS,
    SINGLE_PROMPT_POSITIONS,
    LayerSpec,
    Positions,
    PositionSpec,
    parse_positions,
)
from engine.capture.sites import DEFAULT_SITE, parse_site
from engine.concepts.pair_files import PairFile, WrittenPairs
from engine.concepts.pairs import DEFAULT_SAMPLES
from engine.concepts.text_files import PromptFile
from engine.errors import CaptureError, RequestError
from engine.inputs import is_text, plain_text, plain_texts, require_whole, whole_numbers
from engine.records.captures import Concept, Factors

if TYPE_CHECKING:
    from engine.store.names import CapturePaths

Source = str | Iterable[str] | WrittenPairs | PairFile | PromptFile | Concept
"""What can be captured: a prompt, several, pairs, a file of pairs or prompts, a concept."""

AS_CAPTURED = "as captured"
STORE_DTYPES = (AS_CAPTURED, "float32", "bfloat16")
"""Dtypes that shards can be saved in."""

DEFAULT_BATCH_SIZE: int | None = None
"""As many prompts as the token budget takes."""

MOST_IN_MEMORY = 2**30
"""Most bytes of states that are held in memory and saved as one file."""


@dataclass(frozen=True)
class CaptureRequest:
    """One capture, checked as far as that is possible without a model.

    Python functions, the command line, the server and the terminal app all build one and hand it to
    `capture_and_save`, `capture_in_memory` or `estimate_capture`.

    Attributes:
        source: What to capture. Texts are taken as they are; a concept goes through the chat template.
        layers: See `parse_layers`; None for all.
        site: See `capture_activations`.
        positions: See `parse_positions`; None keeps all tokens of one prompt, and else the last of each.
        max_samples: Maximum number of pairs of a concept, sampled evenly; None for every combination.
        seed: Seed for sampling pairs.
        rendered: Whether texts went through a chat template and hold its special tokens.
        use_hooks: Stop each forward pass after the last requested layer; the states are the same bits.
        batch_size: Maximum number of prompts in a forward pass; None for as many as run well.
        prefix_reuse: Run shared prefixes once, where the model allows it.
        alias: Short name of the model, for the record; None for the one it was loaded by.
        paths: Where to save; None for captures that stay in memory.
        force: Replace an earlier capture of that name, finished or not.
        shards: Save as shards whatever the size.
        store_dtype: Dtype of the states in shards, one of `STORE_DTYPES`.
        most_in_memory: Bytes of states above which a capture is saved as shards; half of the free memory, if less.
        kept: The positions, parsed.

    Raises:
        RequestError: A value makes no sense; the message names it.
        CaptureError: A prompt is no text, or there is none.

    Example:
        >>> request = CaptureRequest(["Tell me a story", "And another"], layers=[14, 15])
        >>> request.kept.text, request.layers
        ('last', (14, 15))
    """

    source: Source
    layers: LayerSpec = None
    site: str = DEFAULT_SITE
    positions: PositionSpec | None = None
    max_samples: int | None = DEFAULT_SAMPLES
    seed: int = 0
    rendered: bool = False
    use_hooks: bool = True
    batch_size: int | None = DEFAULT_BATCH_SIZE
    prefix_reuse: bool = True
    alias: str | None = None
    paths: CapturePaths | None = None
    force: bool = False
    shards: bool = False
    store_dtype: str = AS_CAPTURED
    most_in_memory: int = MOST_IN_MEMORY
    kept: Positions = field(init=False)

    def __post_init__(self) -> None:
        """Check every value once, and make plain what came as an array or a generator."""
        settle = object.__setattr__  # the way that frozen dataclasses leave open to themselves
        settle(self, "source", _plain_source(self.source))
        entries = None if isinstance(self.layers, str) else whole_numbers(self.layers)
        settle(self, "layers", self.layers if entries is None else tuple(entries))
        unless_told = SINGLE_PROMPT_POSITIONS if isinstance(self.source, str) else DEFAULT_POSITIONS
        settle(self, "kept", parse_positions(unless_told if self.positions is None else self.positions))
        settle(self, "site", str(parse_site(self.site, self.layers)))
        settle(self, "seed", require_whole(self.seed, "the seed"))
        if self.max_samples is not None:
            settle(self, "max_samples", require_whole(self.max_samples, "the number of pairs", least=1))
        if self.batch_size is not None:
            settle(self, "batch_size", require_whole(self.batch_size, "the batch size", least=1))
        if self.alias is not None:
            settle(self, "alias", str(self.alias))
        if self.store_dtype not in STORE_DTYPES:
            raise RequestError(
                f"states cannot be stored in {self.store_dtype!r}", expected=f"one of {', '.join(STORE_DTYPES)}"
            )

    @property
    def pairs(self) -> bool:
        """Whether the source consists of pairs."""
        return isinstance(self.source, Concept | WrittenPairs | PairFile)

    @property
    def called(self) -> str:
        """What the source is called in the name of a capture that was given none."""
        if isinstance(self.source, Concept):
            return self.source.name
        if isinstance(self.source, PairFile | PromptFile):
            return self.source.path.stem
        return "pairs" if self.pairs else "prompt"


def written_pairs(
    positive: Iterable[str], negative: Iterable[str], factors: Iterable[Factors] | None = None
) -> WrittenPairs:
    """Pairs of texts that a caller hands over, checked.

    Args:
        positive: Prompts of the positive class.
        negative: As many of the negative class, in the same order.
        factors: Persona, template and topic of each pair; None if unknown.

    Raises:
        CaptureError: A prompt is no text, the classes differ in length or are empty, or a pair has no factors.
    """
    first, second = plain_texts(positive, "positive prompt"), plain_texts(negative, "negative prompt")
    known = None if factors is None else tuple(_plain_factors(factors, len(first)))
    if len(first) != len(second) or not first:
        raise CaptureError(
            f"there are {len(first)} positive and {len(second)} negative prompts",
            expected="the same number of each, at least one",
        )
    return WrittenPairs(tuple(first), tuple(second), known)


def _plain_source(source: Source) -> Source:
    if isinstance(source, Concept | WrittenPairs | PairFile | PromptFile):
        return source
    if is_text(source):
        return plain_text(source, "the prompt")
    texts = tuple(plain_texts(source))
    if not texts:
        raise CaptureError("there are no prompts", expected="at least one")
    return texts


def _plain_factors(factors: Iterable[Factors], pairs: int) -> list[Factors]:
    """The factors of each pair as they can be stored."""
    plain = []
    for number, known in enumerate(factors):
        if not isinstance(known, Mapping) or known.keys() != Factors.__annotations__.keys():
            raise CaptureError(
                f"the factors of pair {number} are {known!r}",
                expected=f"a dictionary with {', '.join(Factors.__annotations__)}",
            )
        values = {key: plain_text(value, f"the {key} of pair {number}") for key, value in known.items()}
        plain.append(Factors(template=values["template"], persona=values["persona"], topic=values["topic"]))
    if len(plain) != pairs:
        raise CaptureError(f"there are {pairs} pairs and {len(plain)} sets of factors", expected="one set per pair")
    return plain
