"""Measure how often a ranking finds something in noise, and how often it finds what is there.

It also measures how often the 95% interval of a score contains the expected score, and whether equally good layers are
tied with the best.

Every set is a new capture: new personas, templates, topics and pairs, each with random effects of its own, of the
standard deviation that a setting states, in units of single pairs. A set counts as found if any layer has p <= 0.05.
Layers are correlated by 0.7, as in a model. Without an effect in the population, at most 5% should be found.

Examples:
    .venv/bin/python benchmarks/error_rates.py                       # all settings, 400 sets each
    .venv/bin/python benchmarks/error_rates.py --sets 100 --markdown
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))  # measure this checkout, not an installed version

from engine.concepts.pairs import DEFAULT_SAMPLES, QUICK_SAMPLES, draw_pairs
from engine.records.captures import ActivationData, Concept, ContrastData, Factors, Persona, Template
from engine.records.results import Ranking
from engine.stats.crossed import CROSSED
from engine.stats.ranking import rank_layers

Array = NDArray[np.float64]

LAYERS, WIDTH, ALIKE = 4, 32, 0.7
DRAWS = 199  # permutations and resamples
EFFECT = 10  # the coordinate along which classes differ
FACTORS = ("persona", "template", "topic")


@dataclass(frozen=True)
class Setting:
    """A population of captures.

    Attributes:
        name: What varies, for the table.
        effects: Standard deviation of the effects of each factor.
        strength: Distance between the classes in the population; 0 is the null.
        pairs: Number of pairs drawn from 24 personas, 12 templates and 40 topics.
        design: `crossed`; `uneven`, where the n-th persona, template or topic is drawn with weight 1 / n; `personas` (8
            of them, 9 pairs each); `none` (independent pairs without factors); or `shared` (the same, but each negative
            prompt is in six pairs).
        heavy: Whether noise and effects follow Student's t with three degrees of freedom, else the normal distribution.
        decay: Exponent of the power law by which coordinates shrink; 0 for equal ones.
        unequal: Whether groups and pairs differ in their variance (log-normal, by factors of about two).
    """

    name: str
    effects: Mapping[str, float] = field(default_factory=dict)
    strength: float = 0.0
    pairs: int = DEFAULT_SAMPLES
    design: str = "crossed"
    heavy: bool = False
    decay: float = 0.0
    unequal: bool = False

    def factors(self) -> list[Factors] | None:
        """Factors of the pairs."""
        if self.design in {"none", "shared"}:
            return None
        if self.design == "personas":
            return [Factors(persona=f"p{i % 8}", template="only", topic="only") for i in range(72)]
        if self.design == "uneven":
            rng = np.random.default_rng(0)
            weights = {count: 1 / np.arange(1, count + 1) for count in (24, 12, 40)}
            drawn = [rng.choice(count, size=self.pairs, p=w / w.sum()) for count, w in weights.items()]
            return [Factors(persona=f"p{i}", template=f"t{j}", topic=f"o{k}") for i, j, k in zip(*drawn, strict=True)]
        concept = Concept(
            name="any",
            description="any",
            positive="one",
            negative="other",
            personas=tuple(Persona(f"p{i}", f"one {i}", f"other {i}") for i in range(24)),
            templates=tuple(Template(name=f"t{i}", user="{persona} {topic}") for i in range(12)),
            topics=tuple(f"topic {i}" for i in range(40)),
        )
        return [pair.factors for pair in draw_pairs(concept, self.pairs)]

    def contrasts(self, sets: int, seed: int = 0) -> Iterator[ContrastData]:
        """Draw captures from the population."""
        rng = np.random.default_rng(seed)
        factors = self.factors()
        for _ in range(sets):
            yield self._draw(rng, factors)

    def _draw(self, rng: np.random.Generator, factors: list[Factors] | None) -> ContrastData:
        pairs = len(factors) if factors else 72
        middles, differences = 30 + self._noise(rng, pairs), self._noise(rng, pairs)
        for factor, spread in self.effects.items():
            names = [str(dict(pair)[factor]) for pair in factors or []]
            groups = np.unique(names, return_inverse=True)[1]
            effects = spread * self._noise(rng, groups.max() + 1)
            if self.unequal:
                effects *= np.exp(0.8 * rng.normal(size=(groups.max() + 1, 1)))
            differences += effects[:, groups]
        if self.unequal:
            differences *= np.exp(0.5 * rng.normal(size=(pairs, 1)))
        differences[:, :, EFFECT] += self.strength
        positive, negative = middles + differences / 2, middles - differences / 2
        if self.design != "shared":
            return contrast_of(positive, negative, factors)
        partners = np.arange(pairs) // 6
        return contrast_of(positive, negative[:, partners], None, partners)

    def _noise(self, rng: np.random.Generator, rows: int) -> Array:
        """Correlated layers of noise, `(layers, rows, width)`."""

        def draw(*shape: int) -> Array:
            drawn: Array = rng.standard_t(3, size=shape) / 3**0.5 if self.heavy else rng.normal(size=shape)
            return drawn

        spread = np.arange(1, WIDTH + 1) ** -self.decay
        mixed = (1 - ALIKE) ** 0.5 * draw(LAYERS, rows, WIDTH) + ALIKE**0.5 * draw(rows, WIDTH)
        scaled: Array = mixed * (spread / np.sqrt(np.mean(spread**2)))
        return scaled


NULLS = (
    Setting("independent pairs, no factors", design="none"),
    Setting("72 pairs of 12 negative prompts, no factors", design="shared"),
    Setting("8 personas, each with its own strong direction", {"persona": 1.5}, design="personas"),
    Setting("templates mainly", {"persona": 0.2, "template": 1.0, "topic": 0.2}),
    Setting(
        "personas 1, templates .3, topics .3, anisotropic, heavy tails",
        {"persona": 1.0, "template": 0.3, "topic": 0.3},
        heavy=True,
        decay=0.5,
    ),
    Setting(
        "all three 1, anisotropic, heavy tails",
        {"persona": 1.0, "template": 1.0, "topic": 1.0},
        heavy=True,
        decay=0.5,
    ),
    Setting("all three .5", {"persona": 0.5, "template": 0.5, "topic": 0.5}),
    Setting(
        "personas .7, templates .4, topics .4, unequal variances",
        {"persona": 0.7, "template": 0.4, "topic": 0.4},
        decay=0.5,
        unequal=True,
    ),
    Setting("all three 1, few pairs of most groups", dict.fromkeys(FACTORS, 1.0), design="uneven", decay=0.5),
    Setting("all three 1, very anisotropic, 72 pairs", dict.fromkeys(FACTORS, 1.0), pairs=QUICK_SAMPLES, decay=1.5),
)
"""Populations without an effect."""

_REALISTIC = {"persona": 0.5, "template": 0.2, "topic": 0.2}
EFFECTS = tuple(
    Setting(f"strength {strength:.0f}, {pairs} pairs", _REALISTIC, strength, pairs, heavy=True, decay=0.5)
    for pairs in (DEFAULT_SAMPLES, QUICK_SAMPLES)
    for strength in (1.0, 2.0)
)
"""Populations with an effect, at the default design and at that of `--quick`."""


REALISTIC = tuple(
    Setting(f"{name}, {pairs} pairs", effects, 2.0, pairs, heavy=True, decay=0.5)
    for name, effects in (
        ("personas .5, templates .2, topics .2", _REALISTIC),
        ("personas 1, templates .3, topics .3", {"persona": 1.0, "template": 0.3, "topic": 0.3}),
        ("all three .5", {"persona": 0.5, "template": 0.5, "topic": 0.5}),
    )
    for pairs in (DEFAULT_SAMPLES, QUICK_SAMPLES)
)
"""Populations with effects as in real captures, anisotropic and with heavy tails, for the coverage of intervals."""


def contrast_of(
    positive: Array, negative: Array, factors: list[Factors] | None, partners: NDArray[np.int64] | None = None
) -> ContrastData:
    """A contrast of given states, `(layers, pairs, hidden)` for each class.

    Args:
        positive: States of the positive prompts.
        negative: States of the negative prompts.
        factors: Factors of each pair, if it has any.
        partners: Number of the negative prompt of each pair; by default, every pair has its own.
    """

    def prompts(name: str, numbers: NDArray[np.int64], states: Array) -> list[ActivationData]:
        return [
            ActivationData(
                activations={layer: torch.from_numpy(states[layer, pair])[None, None] for layer in range(len(states))},
                input_ids=torch.zeros(1, 1, dtype=torch.long),
                tokens=["x"],
                prompt=f"{name} {numbers[pair]}",
                num_layers=len(states),
                captured_layers=list(range(len(states))),
            )
            for pair in range(states.shape[1])
        ]

    every = np.arange(positive.shape[1])
    data = ContrastData(
        positive=prompts("positive", every, positive),
        negative=prompts("negative", every if partners is None else partners, negative),
        num_pairs=positive.shape[1],
        concept=None,
        layers=list(range(len(positive))),
    )
    if factors is not None:
        data["factors"] = factors
    return data


def rankings(setting: Setting, sets: int, seed: int = 0) -> Iterator[Ranking]:
    """Rank captures from a population."""
    for number, data in enumerate(setting.contrasts(sets, seed)):
        yield rank_layers(data, resamples=DRAWS, permutations=DRAWS, seed=number)


def found(setting: Setting, sets: int, seed: int = 0) -> float:
    """Share of captures with p <= 0.05 at any layer."""
    return found_with(setting, sets, seed)[0]


def found_with(setting: Setting, sets: int, seed: int = 0) -> tuple[float, float]:
    """Share of captures with p <= 0.05 at any layer, and the same if factors were only tested one at a time."""
    both, single = [], []
    for ranking in rankings(setting, sets, seed):
        rows = ranking["layers"]
        both.append(min(row["p_value"] for row in rows))
        single.append(min(max(p for test, p in row["p_by_factor"].items() if test != CROSSED) for row in rows))
    return float(np.mean(np.array(both) <= 0.05)), float(np.mean(np.array(single) <= 0.05))


def covered(setting: Setting, sets: int, seed: int = 0) -> tuple[float, float]:
    """Share of intervals that contain the expected score, and of layers that are tied with the best.

    All layers of a setting are equally good: each has the same expected score, and each may be called the best.
    """
    rows = [row for ranking in rankings(setting, sets, seed) for row in ranking["layers"]]
    expected = np.mean([row["d_prime"] for row in rows])
    inside = [row["low"] <= expected <= row["high"] for row in rows]
    return float(np.mean(inside)), float(np.mean([row["tied"] for row in rows]))


def main() -> None:
    """Print the share of sets in which something was found, for every setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=400, help="sets per setting")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.markdown:
        print("| population | sets | found at 5% | without the crossed test |\n| --- | --- | --- | --- |")
    counted = ((setting.name, found_with(setting, arguments.sets)) for setting in (*NULLS, *EFFECTS))
    rows = ((name, str(arguments.sets), f"{both:.1%}", f"{single:.1%}") for name, (both, single) in counted)
    _print_rows(rows, markdown=arguments.markdown)
    if arguments.markdown:
        print("\n| population | intervals | contain the expected score | layers tied with the best |")
        print("| --- | --- | --- | --- |")
    sets = arguments.sets // 4
    shares = ((setting.name, covered(setting, sets)) for setting in REALISTIC)
    lines = ((name, str(sets * LAYERS), f"{inside:.1%}", f"{tied:.1%}") for name, (inside, tied) in shares)
    _print_rows(lines, markdown=arguments.markdown)


def _print_rows(rows: Iterable[tuple[str, ...]], *, markdown: bool) -> None:
    """Print each row as soon as it is measured."""
    for name, *cells in rows:
        line = f"{name:<64}" + "".join(f"{cell:>8}" for cell in cells)
        print(f"| {' | '.join((name, *cells))} |" if markdown else line, flush=True)


if __name__ == "__main__":
    main()
