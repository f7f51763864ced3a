"""Check the texts of a concept before a model runs: confounds, balance, and whether the design can be tested."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.concepts.catalog import load_concept
from engine.concepts.pairs import DEFAULT_SAMPLES, draw_pairs, render_pairs
from engine.records.captures import Concept, Message, Pair
from engine.records.results import ENOUGH_GROUPS, ConceptCheck, ConfoundReport, Telltale
from engine.stats.baselines import Texts
from engine.stats.confounds import ALPHA, check_texts
from engine.stats.crossed import CROSSED
from engine.stats.designs import shared_prompts
from engine.stats.groups import group_by_factors
from engine.stats.resampling import PERMUTATIONS, RESAMPLES, smallest_p
from engine.stats.text_features import most_telling, words_of
from engine.stats.wordings import link

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUILT_IN_SIZE = {"persona": 24, "template": 12, "topic": 40}
"""Personas, templates and topics of a built-in concept, the factor that limits precision most first."""

VALENCE = (
    "valence (whether one class is more desirable, or more positive in tone): texts do not show it; the specificity of"
    " a capture measures it on a model"
)

_NEGATION = re.compile(
    r"\b(?:not|no|never|none|nobody|nothing|nowhere|neither|nor|without|cannot)\b|n['\u2019]t\b", re.IGNORECASE
)
_FEWEST = 3  # personas that make a word or an imbalance worth naming
_MOST_TELLTALE = 10


def check_concept(
    concept: str | Path | Concept,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    max_samples: int | None = DEFAULT_SAMPLES,
    seed: int = 0,
) -> ConceptCheck:
    """Check the texts of a concept before a model runs.

    The baselines of `find_confounds` run on the pairs that a capture would draw. A baseline gets a warning if it is
    significant and puts 65% or more of the held-out pairs in the right order, or reaches an AUROC of 0.65.

    Args:
        concept: A name, the path of a `.toml` file, or a `Concept`.
        tokenizer: Applies its chat template, counts tokens, and finds the last token. Without it, messages are joined
            by line breaks and length is counted in words.
        max_samples: Maximum number of pairs; None for every combination.
        seed: Seed for sampling pairs.

    Returns:
        The baselines, the smallest p-value that the design can reach, negations and repeated words by class, what to
        add, what texts cannot show, and warnings.

    Raises:
        RequestError: The concept does not exist or is invalid.

    Example:
        >>> check = check_concept("honesty", max_samples=24)
        >>> check["pairs"], check["unchecked"][0].split()[0]
        (24, 'valence')
    """
    if not isinstance(concept, Concept):
        concept = load_concept(concept)
    pairs = draw_pairs(concept, max_samples, seed)
    texts = _rendered(tokenizer, concept, max_samples, seed) if tokenizer is not None else _plain(pairs)
    groupings = group_by_factors(texts.factors or [])
    confounds = check_texts(texts, groupings) if groupings else ConfoundReport(checks=[], warnings=[])
    groups = {factor: len({str(dict(pair.factors)[factor]) for pair in pairs}) for factor in BUILT_IN_SIZE}
    negations = _negations(concept)
    return ConceptCheck(
        concept=concept.name,
        pairs=len(pairs),
        groups=groups,
        smallest_p=_smallest_p(groups),
        confounds=confounds,
        negations=negations,
        telltale=_repeated_words(concept),
        advice=_advice(groups),
        unchecked=[VALENCE],
        warnings=[
            *confounds["warnings"],
            *shared_prompts([pair.factors for pair in pairs], link(*texts.sides)),
            *_unbalanced(negations, len(concept.personas)),
            *_too_small(groups),
        ],
    )


def _smallest_p(groups: Mapping[str, int]) -> dict[str, float]:
    """Smallest p-value that each test of a ranking can reach."""
    found = {factor: smallest_p(count, PERMUTATIONS) for factor, count in groups.items()}
    crossed = sum(count >= ENOUGH_GROUPS for count in groups.values()) > 1
    return found | ({CROSSED: 1 / (RESAMPLES + 1)} if crossed else {})


def _plain(pairs: Sequence[Pair]) -> Texts:
    positive, negative = [_said(pair.positive) for pair in pairs], [_said(pair.negative) for pair in pairs]
    return Texts(
        positive=positive,
        negative=negative,
        lengths=([len(text.split()) for text in positive], [len(text.split()) for text in negative]),
        unit="words",
        read=None,
        factors=[pair.factors for pair in pairs],
    )


def _said(messages: Sequence[Message]) -> str:
    return "\n".join(message["content"] for message in messages)


def _rendered(tokenizer: PreTrainedTokenizerBase, concept: Concept, max_samples: int | None, seed: int) -> Texts:
    rendered = render_pairs(tokenizer, concept, max_samples, seed)
    special = rendered.chat_template is None  # templates write their own
    sides = [
        tokenizer(side, add_special_tokens=special, verbose=False)["input_ids"]
        for side in (rendered.positive, rendered.negative)
    ]
    last = [[str(token) for token in tokenizer.convert_ids_to_tokens([ids[-1] for ids in side])] for side in sides]
    return Texts(
        positive=rendered.positive,
        negative=rendered.negative,
        lengths=([len(ids) for ids in sides[0]], [len(ids) for ids in sides[1]]),
        unit="tokens",
        read=(last[0], last[1]),
        factors=rendered.factors,
    )


def _negations(concept: Concept) -> dict[str, int]:
    """Number of personas with an English negation in the text of one class only."""
    found = [(bool(_NEGATION.search(p.positive)), bool(_NEGATION.search(p.negative))) for p in concept.personas]
    return {"positive": found.count((True, False)), "negative": found.count((False, True))}


def _unbalanced(negations: Mapping[str, int], personas: int) -> list[str]:
    apart = abs(negations["positive"] - negations["negative"])
    if apart < max(_FEWEST, personas / 4):
        return []
    return [
        f"negations are unbalanced: only the positive text has one in {negations['positive']} of {personas} personas,"
        f" only the negative text in {negations['negative']}"
    ]


def _repeated_words(concept: Concept) -> list[Telltale]:
    """Words that the texts of several personas of one class have, net of those of the other class."""
    used = Counter[str](), Counter[str]()
    for persona in concept.personas:
        positive, negative = words_of(persona.positive).keys(), words_of(persona.negative).keys()
        used[0].update(positive - negative)
        used[1].update(negative - positive)
    total = len(concept.personas)
    found = [
        Telltale(text=word, positive=used[0][word], negative=used[1][word], total=total, counted="persona")
        for word in used[0] | used[1]
        if abs(used[0][word] - used[1][word]) >= max(_FEWEST, total / 6)
    ]
    return most_telling(found)[:_MOST_TELLTALE]


def _advice(groups: Mapping[str, int]) -> list[str]:
    """What to add, the factor that limits precision most first."""
    short = [(factor, count) for factor, count in groups.items() if count < BUILT_IN_SIZE[factor]]
    return [
        f"{'then add' if place else 'add'} {factor}s: these pairs have {count}, a built-in concept"
        f" {BUILT_IN_SIZE[factor]}"
        for place, (factor, count) in enumerate(short)
    ]


def _too_small(groups: Mapping[str, int]) -> list[str]:
    few = [f"{count} {factor}{'' if count == 1 else 's'}" for factor, count in groups.items() if count < ENOUGH_GROUPS]
    if not few:
        return []
    return [
        f"too few to test: {', '.join(few)}. Permuting fewer than {ENOUGH_GROUPS} groups cannot reach p < {ALPHA:g}, so"
        " the result does not extend to others"
    ]
