"""Properties of prompt texts as vectors: lengths, capitals, punctuation, words and their order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from engine.records.captures import Factors
from engine.records.results import Telltale

if TYPE_CHECKING:
    from torch import Tensor

    from engine.stats.groups import Pairs, Sides

Tell = Callable[[], None]
"""Called periodically by long checks; an exception raised by it stops the check."""

Bag = Mapping[str, int]
"""How often each feature occurs in a prompt."""

_BAG_VALUES = 2**21  # per class and chunk: 16 MiB in float64
_MOST_COLUMNS = 5000  # a feature that tells the classes apart is among the most frequent differences
_MOST_COUNTED = 2**17  # distinct features counted at a time
_EVERY = 256  # pairs between two calls of `tell`
_NAMED = 3
_FEWEST_GROUPS = 2  # what only one group has says nothing about new ones
_CANDIDATES = 20
_WORD = re.compile(r"\w+")
_SIGN = re.compile(r"[^\w\s]|[_\n]")
_UNIT = re.compile(r"\w+|[^\w\s]")


def words_of(text: str) -> Bag:
    """Bag of the distinct words of a text, without case.

    Example:
        >>> sorted(words_of("Yes, yes: no"))
        ['no', 'yes']
    """
    return dict.fromkeys(_WORD.findall(text.lower()), 1)


def signs_of(text: str) -> Bag:
    """Count the punctuation, symbols and line breaks of a text.

    Example:
        >>> signs_of("Yes! No!").items()
        dict_items([('!', 2)])
    """
    return Counter(_SIGN.findall(text))


def neighbors_of(text: str) -> Bag:
    """Bag of the distinct pairs of neighboring words and signs, as written, with the start and the end.

    Example:
        >>> list(neighbors_of("Go now!"))
        ['(start) Go', 'Go now', 'now !', '! (end)']
    """
    units = ["(start)", *_UNIT.findall(text), "(end)"]
    return dict.fromkeys((f"{one} {other}" for one, other in pairwise(units)), 1)


def capitals_in(text: str) -> int:
    """Number of capital letters.

    A share would fall with every lowercase word that is added, and so repeat the length.
    """
    return sum(map(str.isupper, text))


@dataclass(frozen=True)
class BagPairs:
    """Bags of both prompts of every pair.

    Attributes:
        count: Number of pairs.
        bags: Makes the bags of the positive and of the negative prompt of a pair.
        tell: Called while this takes long.
    """

    count: int
    bags: Callable[[int], tuple[Bag, Bag]]
    tell: Tell

    def columns(self) -> list[str]:
        """Features that differ within pairs, the most frequent differences first.

        Features that are equal in both prompts of every pair do not change the direction. More than 5,000 are cut.
        """
        counts: Counter[str] = Counter()
        for positive, negative in self:
            counts.update(_differing(positive, negative))
            if len(counts) > _MOST_COUNTED:
                counts = Counter(dict(counts.most_common(_MOST_COUNTED // 2)))
        return [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MOST_COLUMNS]]

    def __iter__(self) -> Iterator[tuple[Bag, Bag]]:
        for number in range(self.count):
            if number % _EVERY == 0:
                self.tell()
            yield self.bags(number)

    def vectors(self, columns: Sequence[str]) -> Pairs:
        """Vectors of the pairs in chunks, one column per feature."""
        column = {feature: number for number, feature in enumerate(columns)}
        at_once = max(1, _BAG_VALUES // len(columns))

        def some() -> Iterator[Sides]:
            for start in range(0, self.count, at_once):
                self.tell()
                bags = [self.bags(number) for number in range(start, min(start + at_once, self.count))]
                yield _dense([bag for bag, _ in bags], column), _dense([bag for _, bag in bags], column)

        return some

    def telltale(self, columns: Sequence[str], counted: str, values: Sequence[str]) -> list[Telltale]:
        """Name the features that differ between the classes in most groups.

        Args:
            columns: Features, see `columns`.
            counted: What the groups are, see `Telltale`.
            values: Group of each pair.
        """
        chosen = self._one_sided(columns)
        groups: dict[str, tuple[set[str], set[str]]] = {feature: (set(), set()) for feature in chosen}
        for value, (positive, negative) in zip(values, self, strict=True):
            for feature in groups.keys() & (positive.keys() | negative.keys()):
                difference = positive.get(feature, 0) - negative.get(feature, 0)
                if difference:
                    groups[feature][difference < 0].add(value)
        total = len(set(values))
        found = [
            Telltale(text=feature, positive=len(more), negative=len(less), total=total, counted=counted)
            for feature, (more, less) in groups.items()
        ]
        return most_telling(found)[:_NAMED]

    def _one_sided(self, columns: Sequence[str]) -> list[str]:
        """Features with the largest difference between the classes, counted in pairs."""
        wanted, net = set(columns), Counter[str]()
        for positive, negative in self:
            for feature in _differing(positive, negative):
                if feature in wanted:
                    net[feature] += 1 if positive.get(feature, 0) > negative.get(feature, 0) else -1
        return sorted(net, key=lambda feature: (-abs(net[feature]), feature))[:_CANDIDATES]


def most_telling(found: Sequence[Telltale]) -> list[Telltale]:
    """Sort by the difference between the classes; features that differ by less than two groups are dropped."""
    kept = [one for one in found if abs(one["positive"] - one["negative"]) >= _FEWEST_GROUPS]
    return sorted(kept, key=lambda one: (-abs(one["positive"] - one["negative"]), one["text"]))


def telltale_in_words(found: Sequence[Telltale]) -> str:
    """Name telltale features with their counts.

    Example:
        >>> word = Telltale(text="truly", positive=9, negative=0, total=12, counted="persona")
        >>> telltale_in_words([word])
        "'truly' in the positive prompts of 9 of 12 personas, the negative prompts of 0"
    """
    return "; ".join(
        f"{one['text']!r} in the positive prompts of {one['positive']} of {one['total']} {one['counted']}s,"
        f" the negative prompts of {one['negative']}"
        for one in found
    )


def pair_groups(factors: Sequence[Factors] | None, factor: str, count: int) -> tuple[str, Sequence[str]]:
    """What to count telltale features in, and the group of each pair.

    Args:
        factors: Factors of each pair, if known.
        factor: Factor whose groups are swapped in permutations.
        count: Number of pairs.
    """
    if not factors:
        return "pair", [str(number) for number in range(count)]
    return factor, [str(dict(pair)[factor]) for pair in factors]


def _differing(positive: Bag, negative: Bag) -> Iterator[str]:
    for feature, times in positive.items():
        if negative.get(feature, 0) != times:
            yield feature
    for feature in negative:
        if feature not in positive:
            yield feature


def _dense(bags: Sequence[Bag], column: Mapping[str, int]) -> Tensor:
    rows, columns, values = [], [], []
    for row, bag in enumerate(bags):
        for feature, times in bag.items():
            if (number := column.get(feature)) is not None:
                rows.append(row)
                columns.append(number)
                values.append(float(times))
    held = torch.zeros((len(bags), len(column)), dtype=torch.float64)
    held[rows, columns] = torch.tensor(values, dtype=torch.float64)
    return held
