"""The request for one capture: what to run and keep, how, and where to save it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.capture.selection import (
    DEFAULT_POSITIONS,
    RESPONSE_POSITIONS,
    SINGLE_PROMPT_POSITIONS,
    LayerSpec,
    Positions,
    PositionSpec,
    no_responses,
    parse_positions,
    plain_layers,
)
from engine.capture.sites import DEFAULT_SITE, parse_site
from engine.concepts.pair_files import PairFile, WrittenPairs
from engine.concepts.pairs import DEFAULT_SAMPLES
from engine.concepts.text_files import PromptFile
from engine.errors import CaptureError, RequestError
from engine.inputs import is_text, plain_text, plain_texts, require_flag, require_whole
from engine.records.captures import Concept, Factors
from engine.records.checks import plain_factors
from engine.remedies import Remedy
from engine.runtime import Processes

if TYPE_CHECKING:
    from engine.store.names import CapturePaths

Source = str | Iterable[str] | WrittenPairs | PairFile | PromptFile | Concept
"""Input of a capture: one prompt, several prompts, pairs, a file of pairs or prompts, or a concept."""

AS_CAPTURED = "as captured"
STORE_DTYPES = (AS_CAPTURED, "float32", "bfloat16")
"""Dtypes that shards can be saved in."""

DEFAULT_BATCH_SIZE: int | None = None
"""As many prompts as the token budget allows."""

MOST_IN_MEMORY = 2**30
"""Maximum bytes of states to hold in memory and save as one file."""


_FLAGS = ("sample", "rendered", "use_hooks", "prefix_reuse", "force", "shards", "specificity", "new_neighbours")


@dataclass(frozen=True)
class CaptureRequest:
    """One capture, validated as far as possible without a model.

    The Python functions, the command line, the server and the terminal app all build a request and pass it to
    `capture_and_save` or `prepare_capture`.

    Attributes:
        source: What to capture. Only concepts are rendered with the chat template; texts are used unchanged.
        layers: See `parse_layers`; None for all.
        site: See `capture_activations`.
        positions: See `parse_positions`; None for the mean over the tokens of each response; without responses, for all
            tokens of a single prompt, else the last token of each prompt.
        max_samples: Maximum number of pairs of a concept, sampled evenly; None for every combination.
        seed: Seed for sampling pairs and responses.
        respond: Let the model respond to each prompt first, with at most this many tokens; None for no responses, or
            for those given with the prompts.
        sample: Sample responses, with the model's own generation settings, instead of taking the most likely tokens.
        rendered: Whether texts went through a chat template and already contain special tokens.
        use_hooks: Stop each forward pass after the last requested layer; the states are bit-identical.
        batch_size: Maximum number of prompts in a forward pass; None for as many as the token budget allows.
        prefix_reuse: Run shared prefixes once, if the model allows it.
        compiled: Compile the decoder blocks with `torch.compile`, if the model allows it, which takes up to a minute
            once per kind of model. None for captures of more than about ten minutes on a CUDA GPU.
        alias: Short name of the model, for the record; None for the alias it was loaded by.
        paths: Where to save; None to keep the capture in memory.
        force: Replace an existing capture of that name when the new one is complete. An unfinished one with the same
            settings is resumed instead.
        shards: Save as shards, regardless of size.
        store_dtype: Dtype of the states in shards, one of `STORE_DTYPES`.
        specificity: Compare a concept with its neighbours after it is saved, see `add_specificity`.
        new_neighbours: Capture the neighbours that are not cached for this model. If False and one is missing, the
            concept is not compared, and its record says why.
        most_in_memory: Bytes of states above which to save as shards; half of the free memory, if that is less.
        kept: The parsed positions.
        gives_responses: Whether the source has responses to its prompts.

    Raises:
        RequestError: A value is invalid; the message names it.
        CaptureError: A prompt is not a text, or there are no prompts.

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
    respond: int | None = None
    sample: bool = False
    rendered: bool = False
    use_hooks: bool = True
    batch_size: int | None = DEFAULT_BATCH_SIZE
    prefix_reuse: bool = True
    compiled: bool | None = None
    alias: str | None = None
    paths: CapturePaths | None = None
    force: bool = False
    shards: bool = False
    store_dtype: str = AS_CAPTURED
    specificity: bool = True
    new_neighbours: bool = True
    most_in_memory: int = MOST_IN_MEMORY
    kept: Positions = field(init=False)
    gives_responses: bool = field(init=False)

    def __post_init__(self) -> None:
        """Validate every value, and convert arrays and generators to plain values."""
        settle = object.__setattr__  # how a frozen dataclass sets its own fields
        settle(self, "source", _plain_source(self.source))
        settle(self, "site", str(parse_site(self.site, self.layers)))
        settle(self, "layers", plain_layers(self.layers))
        settle(self, "seed", require_whole(self.seed, "the seed"))
        for name in _FLAGS:
            settle(self, name, require_flag(getattr(self, name), name))
        self._settle_responses()
        if self.max_samples is not None:
            settle(self, "max_samples", require_whole(self.max_samples, "the number of pairs", least=1))
        if self.batch_size is not None:
            settle(self, "batch_size", require_whole(self.batch_size, "the batch size", least=1))
        if self.alias is not None:
            settle(self, "alias", str(self.alias))
        if not (self.compiled is None or isinstance(self.compiled, bool)):
            raise RequestError(f"compiled cannot be {self.compiled!r}", expected="True, False or None")
        if self.store_dtype not in STORE_DTYPES:
            raise RequestError(
                f"states cannot be stored in {self.store_dtype!r}", expected=f"one of {', '.join(STORE_DTYPES)}"
            )
        if self.store_dtype != AS_CAPTURED and not self.always_shards:
            raise RequestError("a dtype for storing states applies only to shards", next_step=Remedy.ADD_SHARDS)

    def _settle_responses(self) -> None:
        settle = object.__setattr__
        given = _gives_responses(self.source)
        settle(self, "gives_responses", given)
        if self.respond is not None:
            settle(self, "respond", require_whole(self.respond, "the number of tokens of a response", least=1))
            if given:
                raise RequestError(
                    "the prompts already have responses, so the model has nothing to say",
                    next_step="remove the given responses, or do not let the model respond",
                )
        if self.sample and self.respond is None:
            raise RequestError(
                "sampling applies only to responses of the model",
                expected="also the maximum number of tokens of a response",
                next_step=Remedy.ADD_RESPOND,
            )
        if self.sample and self.seed < 0:
            raise RequestError(f"the seed cannot be {self.seed}", expected="a whole number, at least 0")
        default = SINGLE_PROMPT_POSITIONS if isinstance(self.source, str) else DEFAULT_POSITIONS
        if given or self.respond is not None:
            default = RESPONSE_POSITIONS
        settle(self, "kept", parse_positions(default if self.positions is None else self.positions))
        if self.kept.response and not given and self.respond is None:
            raise no_responses(self.kept.text)

    @property
    def always_shards(self) -> bool:
        """Whether the capture is saved as shards even if it is small: on request, and files of prompts."""
        return self.shards or isinstance(self.source, PromptFile)

    @property
    def pairs(self) -> bool:
        """Whether the source consists of pairs."""
        return isinstance(self.source, Concept | WrittenPairs | PairFile)

    @property
    def called(self) -> str:
        """The name of the source in default capture names."""
        if isinstance(self.source, Concept):
            return self.source.name
        if isinstance(self.source, PairFile | PromptFile):
            return self.source.path.stem
        return "pairs" if self.pairs else "prompt" if isinstance(self.source, str) else "prompts"


def require_shards(request: CaptureRequest, processes: Processes) -> None:
    """Refuse a capture that several processes cannot share.

    Raises:
        RequestError: There are several processes, and the capture may be saved as one file.
    """
    if processes.count > 1 and not request.always_shards:
        listed = isinstance(request.source, str | tuple)
        raise RequestError(
            f"this capture is saved as one file, which {processes.count} processes cannot share",
            expected="a file of prompts, or pairs or a concept saved as shards",
            next_step="run the command without a launcher" if listed else Remedy.ADD_SHARDS,
        )


def written_pairs(
    positive: Iterable[str],
    negative: Iterable[str],
    factors: Iterable[Factors] | None = None,
    positive_responses: Iterable[str] | None = None,
    negative_responses: Iterable[str] | None = None,
) -> WrittenPairs:
    """Validate pairs of texts from a caller.

    Args:
        positive: Prompts of the positive class.
        negative: The same number of prompts of the negative class, in the same order.
        factors: Persona, template and topic of each pair; None if unknown.
        positive_responses: A response to each positive prompt; None without responses.
        negative_responses: A response to each negative prompt; None without responses.

    Raises:
        CaptureError: A prompt is not a text, the classes differ in length or are empty, a pair has no factors, or
            responses are missing.
    """
    first, second = plain_texts(positive, "positive prompt"), plain_texts(negative, "negative prompt")
    known = None if factors is None else tuple(plain_factors(factors, len(first)))
    if len(first) != len(second) or not first:
        raise CaptureError(
            f"there are {len(first)} positive and {len(second)} negative prompts",
            expected="the same number of both, at least one each",
        )
    responses = [
        None if given is None else tuple(plain_texts(given, f"{side} response"))
        for side, given in (("positive", positive_responses), ("negative", negative_responses))
    ]
    counts = [0 if given is None else len(given) for given in responses]
    if responses != [None, None] and counts != [len(first)] * 2:
        raise CaptureError(
            f"there are {len(first)} pairs, {counts[0]} positive and {counts[1]} negative responses",
            expected="a response to every prompt, or none at all",
        )
    return WrittenPairs(tuple(first), tuple(second), known, *responses)


def _gives_responses(source: Source) -> bool:
    if isinstance(source, PairFile | PromptFile):
        return source.answered
    return isinstance(source, WrittenPairs) and source.positive_responses is not None


def _plain_source(source: Source) -> Source:
    if isinstance(source, WrittenPairs):
        return written_pairs(
            source.positive, source.negative, source.factors, source.positive_responses, source.negative_responses
        )
    if isinstance(source, Concept | PairFile | PromptFile):
        return source
    if is_text(source):
        return plain_text(source, "the prompt")
    texts = tuple(plain_texts(source))
    if not texts:
        raise CaptureError("there are no prompts", expected="at least one")
    return texts
