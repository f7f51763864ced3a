"""What a causal ranking is tested on: neutral prompts, and what both personas themselves say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal

import torch

from engine.capture.prompts import longest_prompt
from engine.capture.responses import generate_responses, require_room
from engine.concepts.chat import render_chats
from engine.concepts.text_files import PromptFile, named_prompts
from engine.errors import CaptureError, RequestError
from engine.records.captures import ActivationData, ContrastData, Message, factor_columns, has_neutral_prompts
from engine.records.results import ENOUGH_GROUPS
from engine.remedies import Remedy
from engine.runtime import Steps
from engine.stats.causal import FEWEST_GROUPS
from engine.stats.groups import effective_groups
from engine.stats.wordings import number_pairs
from engine.steering.causal_request import CausalRequest
from engine.steering.fan_out import Text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_FOLDS = 4
_FEWEST_TRIALS = 4
_SPARE = 1.5  # pairs for each prompt: the personas of some say the same
_HELD_OUT = ("persona", "topic")
_SIDES: tuple[Literal["positive", "negative"], ...] = ("positive", "negative")


@dataclass(frozen=True)
class Trial:
    """A pair whose personas answer, and a neutral prompt.

    Attributes:
        pair: Number of the pair.
        fold: Fold of its persona and topic; directions for it are fitted on pairs without either.
        neutral: Token ids of the neutral prompt.
        prompts: Token ids of the positive and the negative prompt.
        answers: Token ids of what the model answers to them.
    """

    pair: int
    fold: int
    neutral: list[int]
    prompts: tuple[list[int], list[int]]
    answers: tuple[list[int], list[int]]

    def neutral_texts(self) -> list[Text]:
        """Both answers after the neutral prompt: positive, negative."""
        return [Text([*self.neutral, *answer], len(self.neutral)) for answer in self.answers]

    def persona_texts(self) -> list[Text]:
        """Both answers after the positive prompt, then both after the negative one."""
        return [Text([*prompt, *answer], len(prompt)) for prompt in self.prompts for answer in self.answers]


@dataclass(frozen=True)
class Design:
    """Folds of the pairs of a contrast, and the pairs to test.

    Attributes:
        folds: Number of folds.
        held_out: Factors that are held out; empty for pairs without them.
        training: Pairs on which the directions of each fold are fitted.
        tested: Pairs that may be tested in each fold, the first ones first.
        groups: Factor to the group index of every pair, `(pairs,)`; without factors `pair`, one group for pairs that
            share a prompt.
        placed: Fold of every pair by each of these factors, `(factors, pairs)`.
        templates: Template of every pair; empty without factors.
    """

    folds: int
    held_out: list[str]
    training: list[torch.Tensor]
    tested: list[list[int]]
    groups: dict[str, torch.Tensor]
    placed: torch.Tensor
    templates: list[str]

    @classmethod
    def of(cls, data: ContrastData, request: CausalRequest) -> Design:
        """Split the personas and the topics of a contrast into folds.

        A pair is tested in a fold if its persona and its topic belong to it, and used for fitting if neither does.

        Raises:
            RequestError: There are too few pairs, personas or topics.
        """
        groups = _groups(data)
        counts = [int(numbers.max()) + 1 for numbers in groups.values()]
        folds = min(_FOLDS, *counts)
        drawing = torch.Generator().manual_seed(request.seed)
        placed = torch.stack(
            [
                (torch.randperm(count, generator=drawing) % folds)[numbers]
                for count, numbers in zip(counts, groups.values(), strict=True)
            ]
        )  # (factors, pairs): the fold of each pair's persona, and of its topic
        inside = [(placed == fold).all(dim=0).nonzero().flatten() for fold in range(folds)]
        outside = [(placed != fold).all(dim=0).nonzero().flatten() for fold in range(folds)]
        if data["num_pairs"] < _FEWEST_TRIALS or not all(map(len, inside)) or min(map(len, outside)) < 2:
            raise RequestError(
                f"{data['num_pairs']} pairs are too few to hold out personas and topics",
                expected="pairs of several personas with several topics, as the 288 of a built-in concept",
                next_step="capture more pairs",
            )
        tested = _chosen(inside, list(groups.values()), math.ceil(_SPARE * request.prompts), drawing)
        held_out = [name for name in groups if name in _HELD_OUT]
        templates = factor_columns(data.get("factors") or [])["template"]
        return cls(folds, held_out, outside, tested, groups, placed, templates)

    def groups_of(self, trials: Sequence[Trial]) -> dict[str, torch.Tensor]:
        """Group index of each trial by everything that its effect may have in common with those of others.

        Besides the factors of the folds that is the template and the neutral prompt, if there are enough of them to
        estimate how much they vary.
        """
        pairs = [trial.pair for trial in trials]
        found = {name: numbers[pairs] for name, numbers in self.groups.items()}
        known = [_numbered(numbers.tolist()) for numbers in found.values()]
        further = {
            "template": _numbered([self.templates[pair] for pair in pairs] if self.templates else []),
            "neutral prompt": _numbered([tuple(trial.neutral) for trial in trials]),
        }
        for name, numbers in further.items():
            repeated = ENOUGH_GROUPS <= len({*numbers}) < len(trials)
            if repeated and numbers not in known:  # by default, the neutral prompts are the topics
                found[name] = torch.tensor(numbers)
        return found

    def swaps(self, count: int, seed: int) -> torch.Tensor:
        """Signs of every pair for permuted labels, `(count, pairs)`: half of the personas in each fold are swapped.

        So the concept cancels. With fewer than two personas a fold, half of all personas are swapped. Pairs without
        personas are swapped by topic, or one by one.
        """
        units, folds = next(iter(self.groups.values())), self.placed[0]
        drawing = torch.Generator().manual_seed(seed)
        signs = torch.ones(count, int(units.max()) + 1, dtype=torch.float64)
        together = [torch.tensor(sorted(set(units[folds == fold].tolist()))) for fold in range(self.folds)]
        if min(map(len, together)) < 2:  # then balance over all folds at once
            together = [torch.cat(together)]
        for members in together:
            for drawn in range(count):
                order = members[torch.randperm(len(members), generator=drawing)]
                odd = int(torch.randint(2, (), generator=drawing)) if len(order) % 2 else 0
                signs[drawn, order[: len(order) // 2 + odd]] = -1.0
        return signs[:, units]


def _groups(data: ContrastData) -> dict[str, torch.Tensor]:
    columns, found = factor_columns(data.get("factors") or []), {}
    for name in _HELD_OUT:
        values = columns[name]
        if all(values) and len({*values}) > 1:
            found[name] = torch.tensor(_numbered(values))
    return found or {"pair": number_pairs(data)}


def _numbered(values: Sequence[Hashable]) -> list[int]:
    """Number values in the order in which they first occur."""
    known = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return [known[value] for value in values]


def _chosen(
    inside: Sequence[torch.Tensor], groups: Sequence[torch.Tensor], most: int, drawing: torch.Generator
) -> list[list[int]]:
    """Choose pairs from each fold in turn, rarest personas and topics first."""
    waiting = [fold[torch.randperm(len(fold), generator=drawing)].tolist() for fold in inside]
    chosen: list[list[int]] = [[] for _ in inside]
    used: Counter[tuple[int, int]] = Counter()

    def rarity(pair: int) -> int:
        return sum(used[place, int(numbers[pair])] for place, numbers in enumerate(groups))

    while sum(map(len, chosen)) < most and any(waiting):
        for fold, pairs in enumerate(waiting):
            if pairs and sum(map(len, chosen)) < most:
                pair = min(pairs, key=rarity)
                pairs.remove(pair)
                chosen[fold].append(pair)
                used.update((place, int(numbers[pair])) for place, numbers in enumerate(groups))
    return chosen


def make_trials(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: ContrastData,
    design: Design,
    request: CausalRequest,
    neutral: Sequence[str] | PromptFile | None,
    steps: Steps,
) -> tuple[list[Trial], int]:
    """Let both personas of every tested pair answer, greedily; of a capture with responses, take those.

    Args:
        model: The model of the contrast.
        tokenizer: Its tokenizer.
        data: The contrast.
        design: Its folds.
        request: What to measure.
        neutral: One neutral prompt per pair of the contrast; the topics of a concept by default. They go through the
            chat template.
        steps: Called with the number of answers.

    Returns:
        The trials, at most as many as requested, without pairs whose personas say the same; and the number of those.

    Raises:
        RequestError: The pairs have no topics and no neutral prompts are given, or the personas hardly ever differ in
            what they say.
        CaptureError: A prompt is too long.
    """
    in_turn = zip_longest(*design.tested)  # a pair of each fold, then the next of each
    pairs = [(pair, fold) for turn in in_turn for fold, pair in enumerate(turn) if pair is not None]
    named = _neutral_prompts(data, neutral)
    provenance = data.get("provenance")
    rendered = render_chats(
        tokenizer,
        [(Message(role="user", content=named[pair][1]),) for pair, _ in pairs],
        provenance.get("template_time") if provenance else None,
    )
    special = not tokenizer.chat_template  # a chat template writes the special tokens itself
    neutral_ids = [list(ids) for ids in tokenizer(rendered, add_special_tokens=special)["input_ids"]]
    longest = longest_prompt(model, tokenizer)
    for (pair, _), ids in zip(pairs, neutral_ids, strict=True):
        if not ids:
            raise CaptureError(f"{named[pair][0]} has no tokens", expected="a text")
        require_room(len(ids), request.answer_tokens, longest, named[pair][0])
    captured = [_split(data[side][pair]) for pair, _ in pairs for side in _SIDES]
    prompts, answers = [prompt for prompt, _ in captured], [answer for _, answer in captured]
    if not any(answers):
        written = generate_responses(
            model, tokenizer, prompts, request.answer_tokens, progress=partial(steps, "writing what the personas say")
        )
        answers = [answer.ids for answer in written]
    made = [
        Trial(
            pair,
            fold,
            neutral_ids[number],
            (prompts[2 * number], prompts[2 * number + 1]),
            (answers[2 * number][: request.answer_tokens], answers[2 * number + 1][: request.answer_tokens]),
        )
        for number, (pair, fold) in enumerate(pairs)
    ]
    usable = [trial for trial in made if trial.answers[0] != trial.answers[1] and all(trial.answers)]
    if len(usable) < _FEWEST_TRIALS:
        raise _too_few(made)
    chosen = usable[: request.prompts]
    for name, numbers in design.groups.items():
        _require_several(name, numbers[[trial.pair for trial in chosen]])
    return chosen, len(made) - len(usable)


def _require_several(name: str, numbers: torch.Tensor) -> None:
    """Require that no persona, topic or prompt has nearly all trials, whose effects would be its own."""
    if effective_groups(numbers) < FEWEST_GROUPS:
        most, those = int(torch.bincount(numbers).max()), "share a prompt" if name == "pair" else f"have one {name}"
        raise RequestError(
            f"{most} of the {len(numbers)} pairs whose personas answer differently {those}",
            expected=f"several {'prompts' if name == 'pair' else f'{name}s'} with about as many pairs each",
            next_step="capture more pairs",
        )


def _too_few(trials: Sequence[Trial]) -> RequestError:
    """Build the error for pairs whose two answers hardly ever differ."""
    silent = sum(not all(trial.answers) for trial in trials)
    same = sum(trial.answers[0] == trial.answers[1] for trial in trials if all(trial.answers))
    if silent > same:
        return RequestError(
            f"one persona or both say nothing in {silent} of {len(trials)} pairs",
            expected="prompts that the model answers",
            next_step=Remedy.GET_ANSWERS,
        )
    return RequestError(
        f"both personas say the same in {same} of {len(trials)} pairs",
        expected="a model that answers differently in the two roles",
        next_step=Remedy.LET_PERSONAS_SAY_MORE,
    )


def _split(captured: ActivationData) -> tuple[list[int], list[int]]:
    """Token ids of a captured prompt, and of its response; the latter are empty without one."""
    ids: list[int] = captured["input_ids"][0].tolist()
    response = captured.get("response")
    length = len(ids) - (response["tokens"] if isinstance(response, dict) else 0)
    return ids[:length], ids[length:]


def _neutral_prompts(data: ContrastData, neutral: Sequence[str] | PromptFile | None) -> list[tuple[str, str]]:
    """The neutral prompt of each pair: its name in error messages, and its text."""
    if neutral is not None:
        named = named_prompts(neutral, "neutral prompt")
        if len(named) != data["num_pairs"]:
            raise RequestError(
                f"there are {len(named)} neutral prompts for {data['num_pairs']} pairs", expected="one per pair"
            )
        if isinstance(neutral, PromptFile):
            return named
        return [(f"the neutral prompt of pair {pair}", text) for pair, (_, text) in enumerate(named)]
    factors = data.get("factors")
    if factors is None or not has_neutral_prompts(data["concept"], factors):
        raise RequestError(
            "these pairs have no neutral prompts to steer on",
            expected="pairs of a concept, whose topics are prompts without a persona",
            next_step=Remedy.GIVE_NEUTRAL_PROMPTS,
        )
    return [(f"the topic of pair {number}, a neutral prompt,", pair["topic"]) for number, pair in enumerate(factors)]
