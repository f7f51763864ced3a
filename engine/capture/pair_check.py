"""Refuse pairs that contrast nothing: the same prompt in both classes, or two classes that hold the same prompts."""

from __future__ import annotations

from collections.abc import Sequence

from engine.capture.prompts import TokenizedPrompt, excerpt
from engine.errors import CaptureError

_EXPECTED = "two prompts that differ in what the contrast is about"


class PairCheck:
    """Compares the prompts of pairs by their token ids, without holding them: there may be any number."""

    def __init__(self) -> None:
        self._pairs = 0
        self._balance = 0  # hashes of the positive prompts minus those of the negative: 0 for the same prompts
        self._identical = ""

    def add(self, prompts: Sequence[TokenizedPrompt]) -> None:
        """Look at more pairs.

        Args:
            prompts: The positive and the negative prompt of each pair in turn.
        """
        for positive, negative in zip(prompts[0::2], prompts[1::2], strict=True):
            self._balance += hash(tuple(positive.ids)) - hash(tuple(negative.ids))
            if positive.ids == negative.ids and not self._identical:
                self._identical = f"pair {self._pairs} has {_in_words(positive.text, negative.text)}"
            self._pairs += 1

    def require_contrast(self) -> None:
        """Refuse what has been looked at if it holds no contrast.

        Raises:
            CaptureError: Both classes have the same prompts, in whatever order, or both prompts of a pair are the same.
        """
        if self._balance == 0:
            raise CaptureError("both classes have identical prompts: there is nothing to contrast", expected=_EXPECTED)
        if self._identical:
            raise CaptureError(self._identical, expected=_EXPECTED, next_step="correct that pair, or leave it out")


def _in_words(positive: str, negative: str) -> str:
    if positive == negative:
        return f"the same prompt in both classes ({excerpt(positive)})"
    return f"two prompts with the same tokens ({excerpt(positive)}, {excerpt(negative)})"
