"""Prepare a capture: render, tokenize, check and count its prompts."""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import msgspec
import torch

from engine.capture.budget import pays_to_compile
from engine.capture.dialogues import respond_to, response_source
from engine.capture.prompts import PairCheck, TokenizedPrompt, longest_prompt
from engine.capture.provenance import trace_provenance
from engine.capture.responses import require_room
from engine.capture.run_settings import Settings
from engine.capture.sources import Item, PromptSource
from engine.concepts.pair_files import named_factors
from engine.errors import CaptureError, RequestError
from engine.records.captures import Factors, Provenance
from engine.records.files import PromptList
from engine.remedies import Remedy
from engine.runtime import Progress, Steps, ignore_progress, paused_collection

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.capture.request import CaptureRequest

log = logging.getLogger(__name__)

_AT_ONCE = 2048  # prompts or pairs tokenized in one call, which uses all cores
_CHARACTERS_AT_ONCE = 2**22  # fewer, if they are long: bounds memory
_HELD_TOKENS = 2**20  # beyond this, prompts are tokenized again for each shard, to bound memory


@dataclass(frozen=True)
class HeldPrompts:
    """Tokenized prompts in memory.

    Attributes:
        prompts: The prompts; for pairs, each positive prompt is followed by its negative one.
        factors: Factors of each pair; empty if unknown.
    """

    prompts: list[TokenizedPrompt]
    factors: list[Factors]

    def part(self, start: int, count: int) -> HeldPrompts:
        """A slice of `count` prompts, beginning at `start`.

        For pairs, `start` must be the first prompt of a pair.
        """
        return HeldPrompts(self.prompts[start : start + count], self.factors[start // 2 : (start + count) // 2])


@dataclass(frozen=True)
class PreparedCapture:
    """A request resolved against a model, with its prompts checked and counted.

    Attributes:
        model: A checked model.
        tokenizer: Its tokenizer.
        request: The request.
        source: Its rendered prompts.
        settings: What to keep and how to run it.
        found: Number, lengths and hashes of the prompts.
        stamp: Stamp of the source before the prompts were read.
        held: The tokenized prompts and the factors of each pair; None if there are too many to hold in memory.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    request: CaptureRequest
    source: PromptSource
    settings: Settings
    found: PromptList
    stamp: tuple[int, ...]
    held: HeldPrompts | None

    @property
    def state_bytes(self) -> int:
        """Bytes of the kept states of one token position, over all layers."""
        dtype = torch.float32 if self.settings.positions.mean else self.model.dtype
        return len(self.settings.layers) * self.settings.model.hidden_size * dtype.itemsize

    def prompts(self) -> HeldPrompts:
        """All tokenized prompts."""
        if self.held is not None:
            return self.held
        items = [*self.source.items()]
        self.source.require_unchanged(self.stamp)
        return self.tokenized(items)

    def tokenized(self, items: list[Item], start: int = 0) -> HeldPrompts:
        """Tokenize some prompts or pairs again.

        Args:
            items: The prompts or pairs.
            start: Number of the first prompt.
        """
        first = start // self.source.sides
        return HeldPrompts(self.source.tokenize(self.model, self.tokenizer, items, first), _factors(items))

    def provenance(self, settings: Settings) -> Provenance:
        """The provenance of the capture.

        Args:
            settings: Settings of this capture, or the saved ones of a resumed capture.
        """
        return trace_provenance(
            self.model,
            settings,
            alias=self.request.alias,
            chat_template=self.source.chat_template,
            template_time=self.source.moment,
            seed=self.source.seed,
            responses=response_source(self.model, self.request),
        )

    def compile(self, settings: Settings, saved: str | None = None) -> Settings:
        """Settings with compiled blocks, if they are wanted.

        They are wanted if the request says so or, if it leaves that open, in a long capture. A resumed capture, and all
        processes of one, keep what it was started with.

        Args:
            settings: Settings of this capture, with the token budget of the interrupted one.
            saved: `compiled` in the provenance of the interrupted capture; None if there is none.

        Raises:
            CaptureError: The interrupted capture ran compiled, and the blocks cannot be compiled here.
        """
        wanted = self.request.compiled
        if saved is not None and wanted is not False:
            if wanted and saved != "on":
                log.info("running without compiled blocks, as the capture was started")
            wanted = saved == "on"
        long = wanted is None and pays_to_compile(self.model, self.found["tokens"])
        if not (wanted or long):
            return settings
        compiled = settings.compile(self.model, [prompt.ids for prompt in self.held.prompts] if self.held else [])
        if compiled.compiled != "on" and saved is not None:
            raise CaptureError(
                f"the capture was started with compiled blocks, which is not possible here: {compiled.compiled[4:]}",
                expected="the same software on every machine and in every run",
                next_step=Remedy.COMPILE_OR_START_AGAIN,
            )
        return settings if long and compiled.compiled != "on" else compiled

    def with_responses(
        self, held: HeldPrompts, settings: Settings, start: int = 0, progress: Progress = ignore_progress
    ) -> HeldPrompts:
        """Let the model respond to prompts, if the request says so.

        Args:
            held: Prompts from this capture.
            settings: Settings of this capture, or the saved ones of a resumed capture.
            start: Number of the first prompt.
            progress: Called with the number of finished responses and their total.

        Raises:
            CaptureError: See `generate_responses`.
        """
        prompts = respond_to(self.model, self.tokenizer, held.prompts, self.request, settings, start, progress)
        return HeldPrompts(prompts, held.factors)


def prepare_capture(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: CaptureRequest,
    *,
    moment: str | None = None,
    steps: Steps = ignore_progress,
) -> PreparedCapture:
    """Check a request against a model and read its prompts once.

    Args:
        model: From `load_model_and_tokenizer`, or any causal language model of transformers.
        tokenizer: Its tokenizer.
        request: What to capture.
        moment: The time that the interrupted capture passed to a chat template that reads the clock.
        steps: Called with the number of prompts counted so far; an exception it raises stops the work.

    Raises:
        RequestError: The site, layers or positions do not fit the model, or a file cannot be read.
        CaptureError: A prompt is empty or too long, or the classes or the prompts of a pair are identical.
        ModelError: The model fails the load check, or does not have the site.

    Example:
        >>> from engine.capture.request import CaptureRequest
        >>> prepared = prepare_capture(model, tokenizer, CaptureRequest(["Tell me a story"] * 10, layers=[14, 15]))
        >>> prepared.found["tokens"], prepared.settings.layers
        (40, [14, 15])
    """
    settings = Settings.for_model(model, request)
    source = PromptSource.of(tokenizer, request).at(moment)
    if source.concept is not None and not source.rendered:
        log.info("the tokenizer has no chat template: using plain text, as for a base model")
    stamp = source.stamp()
    survey = _Survey(request, source, longest_prompt(model, tokenizer))
    items, number = source.items(), 0
    while part := _next_items(items):
        steps("counting prompts", number * source.sides, 0)
        with paused_collection():
            survey.add(part, source.tokenize(model, tokenizer, part, number))
        number += len(part)
    return PreparedCapture(model, tokenizer, request, source, settings, survey.found(), stamp, survey.held())


def _next_items(items: Iterator[Item]) -> list[Item]:
    """The next prompts or pairs to tokenize in one call; empty at the end."""
    taken, characters = [], 0
    for item in islice(items, _AT_ONCE):
        taken.append(item)
        characters += sum(map(len, (*item.texts, *item.responses)))
        if characters >= _CHARACTERS_AT_ONCE:
            break
    return taken


class _Survey:
    """Counts, checks and hashes prompts in chunks."""

    def __init__(self, request: CaptureRequest, source: PromptSource, longest: int) -> None:
        self._positions, self._respond = request.kept, request.respond
        self._source, self._longest = source, longest
        self._check = PairCheck()
        self._texts, self._ids, self._factors = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
        self._count = self._tokens = self._most = self._kept = 0
        self._named: frozenset[str] | None = None  # factors of the first pair
        self._held: list[TokenizedPrompt] = []
        self._held_factors: list[Factors] = []

    def add(self, items: Sequence[Item], prompts: Sequence[TokenizedPrompt]) -> None:
        """Add a chunk of prompts."""
        if self._source.pairs:
            before = self._count // self._source.sides
            self._check.add(prompts, lambda place: self._source.label("pair", items[place], before + place))
        texts, ids = [], array("q")
        for prompt in prompts:
            for text in (prompt.text, prompt.response["text"]) if prompt.response else (prompt.text,):
                encoded = text.encode()
                texts += [len(encoded).to_bytes(8, "little"), encoded]
            ids.append(len(prompt.ids))
            ids.fromlist(prompt.ids)
        self._texts.update(b"".join(texts))
        self._ids.update(ids)
        own = [self._own(prompt) for prompt in prompts]
        self._count += len(prompts)
        self._tokens += sum(len(prompt.ids) for prompt in prompts) + (self._respond or 0) * len(prompts)
        self._most = max(self._most, *own)
        self._kept += sum(own)
        factors = _factors(items)
        for place, known in enumerate(factors):
            self._factors.update(msgspec.json.encode(known))
            self._require_same_factors(known, items[place], self._count // self._source.sides - len(items) + place)
        if self._tokens <= _HELD_TOKENS:
            self._held += prompts
            self._held_factors += factors
        else:
            self._held, self._held_factors = [], []

    def _require_same_factors(self, known: Factors, item: Item, number: int) -> None:
        """Refuse pairs of which some lack a factor: together they would count as a group of their own."""
        named = named_factors(known)
        self._named = named if self._named is None else self._named
        for factor in sorted(self._named ^ named):
            has, others = ("no", "has one") if factor in self._named else ("a", "has none")
            raise CaptureError(
                f"{self._source.label('pair', item, number)} has {has} {factor}, and the first pair {others}",
                expected=f"a {factor} with every pair, or with none",
                next_step=f"add the {factor} where it is missing, or remove it from all pairs",
            )

    def _own(self, prompt: TokenizedPrompt) -> int:
        """Number of states to keep of a prompt; the maximum, if the model has yet to respond."""
        if self._respond is None:
            return prompt.kept(self._positions)
        prompt_tokens = len(prompt.ids)
        require_room(prompt_tokens, self._respond, self._longest, prompt)
        if not self._positions.response:
            prompt.kept(self._positions)  # the response may be empty
        return self._positions.kept(prompt_tokens + self._respond, prompt, prompt_tokens)

    def found(self) -> PromptList:
        """The counts and hashes; refuses pairs without a contrast."""
        if not self._count:
            raise RequestError(f"{self._source.name} contains no {'pairs' if self._source.pairs else 'prompts'}")
        if self._source.pairs:
            self._check.require_contrast()
        return PromptList(
            file=self._source.name,
            pairs=self._source.pairs,
            count=self._count,
            tokens=self._tokens,
            kept=self._most,
            kept_in_all=self._kept,
            texts=self._texts.hexdigest(),
            ids=self._ids.hexdigest(),
            factors=self._factors.hexdigest() if self._named else "",
        )

    def held(self) -> HeldPrompts | None:
        """The prompts, or None if there are too many."""
        return HeldPrompts(self._held, self._held_factors) if self._tokens <= _HELD_TOKENS else None


def _factors(items: Sequence[Item]) -> list[Factors]:
    return [item.factors for item in items if item.factors is not None]
