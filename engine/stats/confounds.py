"""Baselines without the model: do length, token or words separate the classes?

Each baseline turns a prompt into a vector and is scored on held-out groups exactly like the states. If a baseline
separates held-out prompts, the states may carry nothing more than that.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from engine.capture.selection import Positions, parse_positions
from engine.records.captures import ActivationData, ContrastData, Factors
from engine.records.results import Confound, ConfoundReport
from engine.runtime import Progress, ignore_progress
from engine.stats.groups import Pairs, Sides, group_pairs, pairs_of
from engine.stats.held_out import hold_out
from engine.stats.separation import separate

if TYPE_CHECKING:
    from torch import Tensor

Groupings = Mapping[str, "Tensor"]
Texts = tuple[Sequence[str], Sequence[str]]
Bags = Sequence[Sequence[str]]
Tell = Callable[[], None]
"""Called periodically by long checks; an exception raised by it stops the check."""

SUSPICIOUS = 0.8
"""Held-out AUROC at or above which a confound triggers a warning; corresponds to d' of about 1.2."""

_BAG_VALUES = 2**21  # per class and chunk: 16 MiB in float64
_WORD = re.compile(r"\w+")


def find_confounds(data: ContrastData, *, progress: Progress | None = None) -> ConfoundReport:
    """Score baselines that could explain a contrast without the concept.

    Args:
        data: A contrast.
        progress: Called periodically with the number of finished checks and the total; an exception raised by it
            stops the search.

    Returns:
        For prompt length, token read, topic words and all words, how well each separates the classes on held-out
        prompts: AUROC, leave-one-group-out as in `compute_separation`, for the factor with the lowest d'. A warning
        for each baseline that reaches `SUSPICIOUS`. No checks if no group can be held out.

    Example:
        >>> report = find_confounds(capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=24))
        >>> [check["what"] for check in report["checks"]]
        ['prompt length', 'token read', 'topic words', 'all words']
    """
    factors = data.get("factors")
    groupings = group_pairs(factors, data["num_pairs"])
    if not groupings:
        return ConfoundReport(checks=[], warnings=[])
    texts = _texts(data["positive"]), _texts(data["negative"])
    baselines: list[Callable[[Groupings, Tell], Confound]] = [partial(_lengths, data), partial(_tokens_read, data)]
    if factors:
        baselines.append(partial(_topic_words, texts, factors))
    baselines.append(partial(_words, "all words", texts))
    report = progress or ignore_progress
    checks = []
    for done, baseline in enumerate(baselines):
        tell = partial(report, done, len(baselines))
        tell()
        checks.append(baseline(groupings, tell))
    warnings = [
        f"{check['what']} alone separates held-out prompts (AUROC {check['auroc']:.2f}): {check['detail']}"
        for check in checks
        if check["auroc"] >= SUSPICIOUS
    ]
    return ConfoundReport(checks=checks, warnings=warnings)


def _lengths(data: ContrastData, groupings: Groupings, _tell: Tell) -> Confound:
    positive, negative = _token_counts(data["positive"]), _token_counts(data["negative"])  # (pairs, 1)
    return Confound(
        what="prompt length",
        auroc=_held_out_auroc(pairs_of(positive, negative), groupings),
        detail=f"{positive.mean():.1f} tokens per positive prompt, {negative.mean():.1f} per negative prompt",
    )


def _tokens_read(data: ContrastData, groupings: Groupings, tell: Tell) -> Confound:
    positions = parse_positions(data["provenance"]["positions"] if "provenance" in data else "all")
    if positions.mean:
        return Confound(what="token read", auroc=0.5, detail="the capture keeps a mean over tokens")
    positive, negative = _last_kept(data["positive"], positions), _last_kept(data["negative"], positions)
    usual = Counter(positive).most_common(1)[0][0], Counter(negative).most_common(1)[0][0]
    same = sum(one == other for one, other in zip(positive, negative, strict=True))
    detail = f"the same in {same} of {len(positive)} pairs; mostly {usual[0]!r}"
    detail += f" in positive prompts, {usual[1]!r} in negative prompts" if usual[0] != usual[1] else ""
    bags = [[token] for token in positive], [[token] for token in negative]
    return Confound(what="token read", auroc=_bag_auroc(bags, groupings, tell), detail=detail)


def _topic_words(texts: Texts, factors: Sequence[Factors], groupings: Groupings, tell: Tell) -> Confound:
    """Baseline on the topic of each prompt, or on all of it if it lacks the topic."""
    topics = [pair["topic"] for pair in factors]
    positive, negative = (
        [topic if topic in text else text for text, topic in zip(side, topics, strict=True)] for side in texts
    )
    if positive == negative:
        return Confound(what="topic words", auroc=0.5, detail="the topic is the same in both prompts of every pair")
    return _words("topic words", (positive, negative), groupings, tell)


def _words(what: str, texts: Texts, groupings: Groupings, tell: Tell) -> Confound:
    positive, negative = ([_WORD.findall(text.lower()) for text in side] for side in texts)
    used = [Counter(word for bag in side for word in set(bag)) for side in (positive, negative)]
    telling = sorted(used[0] | used[1], key=lambda word: (-abs(used[0][word] - used[1][word]), word))[:3]
    counts = "; ".join(f"{word!r}: {used[0][word]} positive, {used[1][word]} negative" for word in telling)
    return Confound(
        what=what,
        auroc=_bag_auroc((positive, negative), groupings, tell),
        detail=f"prompts containing {counts}",
    )


def _bag_auroc(bags: tuple[Bags, Bags], groupings: Groupings, tell: Tell) -> float:
    """Held-out AUROC of binary bags of words: one column per word of the vocabulary."""
    words = sorted({word for side in bags for bag in side for word in bag})
    column = {word: number for number, word in enumerate(words)}
    at_once = max(1, _BAG_VALUES // len(words))

    def vectors(side: Bags) -> Tensor:
        held = torch.zeros((len(side), len(words)), dtype=torch.float64)
        for vector, bag in zip(held, side, strict=True):
            vector[[column[word] for word in set(bag)]] = 1.0
        return held

    def some() -> Iterator[Sides]:
        for start in range(0, len(bags[0]), at_once):
            tell()
            yield vectors(bags[0][start : start + at_once]), vectors(bags[1][start : start + at_once])

    return _held_out_auroc(some, groupings)


def _held_out_auroc(pairs: Pairs, groupings: Groupings) -> float:
    separation = separate(hold_out(pairs, groupings))
    return separation["by_factor"][separation["worst"]]["auroc"]


def _token_counts(prompts: Sequence[ActivationData]) -> Tensor:
    return torch.tensor([[prompt["input_ids"].shape[-1]] for prompt in prompts], dtype=torch.float64)


def _last_kept(prompts: Sequence[ActivationData], positions: Positions) -> list[str]:
    """Last kept token of every prompt, the one whose state the statistics use."""
    tokens = [prompt["tokens"] for prompt in prompts]
    return [str(row[positions.span(len(row))[1] - 1]) for row in tokens]


def _texts(prompts: Sequence[ActivationData]) -> list[str]:
    return [str(prompt["prompt"]) for prompt in prompts]
