"""What else could tell the two sides of a contrast apart: length, the token read, words.

Each is turned into a vector a prompt and held out exactly as the states are: what separates the sides on left-out
prompts without any model could be all that the states carry.
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
from engine.runtime import Progress, untold
from engine.stats.groups import Pairs, Sides, group_pairs, pairs_of
from engine.stats.held_out import hold_out
from engine.stats.separation import separate

if TYPE_CHECKING:
    from torch import Tensor

Groupings = Mapping[str, "Tensor"]
Texts = tuple[Sequence[str], Sequence[str]]
Bags = Sequence[Sequence[str]]
Tell = Callable[[], None]
"""Called now and then by what takes long; what it raises ends that."""

SUSPICIOUS = 0.8
"""Held-out AUROC from which a confound is warned of: d' of about 1.2."""

_BAG_VALUES = 2**21  # of one side at once, 16 MiB
_WORD = re.compile(r"\w+")


def find_confounds(data: ContrastData, *, progress: Progress | None = None) -> ConfoundReport:
    """Look for what could explain a contrast without the concept.

    Args:
        data: A contrast.
        progress: Called now and then with the number of checks done and in total; what it raises ends the search.

    Returns:
        For prompt length, token read, words of the topic and all words, how well it separates the sides on left-out
        prompts (AUROC, leave-one-group-out as in `compute_separation`, the factor for which it is lowest), and a
        warning for each that does. No checks where nothing can be left out.

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
    looks: list[Callable[[Groupings, Tell], Confound]] = [partial(_lengths, data), partial(_tokens_read, data)]
    if factors:
        looks.append(partial(_topic_words, texts, factors))
    looks.append(partial(_words, "all words", texts))
    told = progress or untold
    checks = []
    for done, look in enumerate(looks):
        tell = partial(told, done, len(looks))
        tell()
        checks.append(look(groupings, tell))
    warnings = [
        f"{check['what']} alone tells left-out prompts apart (AUROC {check['auroc']:.2f}): {check['detail']}"
        for check in checks
        if check["auroc"] >= SUSPICIOUS
    ]
    return ConfoundReport(checks=checks, warnings=warnings)


def _lengths(data: ContrastData, groupings: Groupings, _tell: Tell) -> Confound:
    positive, negative = _token_counts(data["positive"]), _token_counts(data["negative"])  # (pairs, 1)
    return Confound(
        what="prompt length",
        auroc=_held_out_auroc(pairs_of(positive, negative), groupings),
        detail=f"{positive.mean():.1f} tokens on the positive side, {negative.mean():.1f} on the negative",
    )


def _tokens_read(data: ContrastData, groupings: Groupings, tell: Tell) -> Confound:
    positions = parse_positions(data["provenance"]["positions"] if "provenance" in data else "all")
    if positions.mean:
        return Confound(what="token read", auroc=0.5, detail="a mean over tokens was read")
    positive, negative = _last_kept(data["positive"], positions), _last_kept(data["negative"], positions)
    usual = Counter(positive).most_common(1)[0][0], Counter(negative).most_common(1)[0][0]
    same = sum(one == other for one, other in zip(positive, negative, strict=True))
    detail = f"the same in {same} of {len(positive)} pairs; mostly {usual[0]!r}"
    detail += f" on the positive side, {usual[1]!r} on the negative" if usual[0] != usual[1] else ""
    bags = [[token] for token in positive], [[token] for token in negative]
    return Confound(what="token read", auroc=_bag_auroc(bags, groupings, tell), detail=detail)


def _topic_words(texts: Texts, factors: Sequence[Factors], groupings: Groupings, tell: Tell) -> Confound:
    """Words of the topic as each side has it: the same on both sides where the topic stands in both prompts."""
    topics = [pair["topic"] for pair in factors]
    positive, negative = (
        [topic if topic in text else text for text, topic in zip(side, topics, strict=True)] for side in texts
    )
    if positive == negative:
        return Confound(what="topic words", auroc=0.5, detail="the topic reads the same on both sides of every pair")
    return _words("topic words", (positive, negative), groupings, tell)


def _words(what: str, texts: Texts, groupings: Groupings, tell: Tell) -> Confound:
    positive, negative = ([_WORD.findall(text.lower()) for text in side] for side in texts)
    used = [Counter(word for bag in side for word in set(bag)) for side in (positive, negative)]
    telling = sorted(used[0] | used[1], key=lambda word: (-abs(used[0][word] - used[1][word]), word))[:3]
    counted = ", ".join(f"{word!r} in {used[0][word]} and {used[1][word]}" for word in telling)
    return Confound(
        what=what,
        auroc=_bag_auroc((positive, negative), groupings, tell),
        detail=f"positive and negative prompts with {counted}",
    )


def _bag_auroc(bags: tuple[Bags, Bags], groupings: Groupings, tell: Tell) -> float:
    """Held-out AUROC of bags of words: for each word of the vocabulary, whether the prompt holds it."""
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


def _token_counts(side: Sequence[ActivationData]) -> Tensor:
    return torch.tensor([[prompt["input_ids"].shape[-1]] for prompt in side], dtype=torch.float64)


def _last_kept(side: Sequence[ActivationData], positions: Positions) -> list[str]:
    """The token whose state the statistics look at, of every prompt."""
    tokens = [prompt["tokens"] for prompt in side]
    return [str(its[positions.span(len(its))[1] - 1]) for its in tokens]


def _texts(side: Sequence[ActivationData]) -> list[str]:
    return [str(prompt["prompt"]) for prompt in side]
