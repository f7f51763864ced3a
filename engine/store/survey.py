"""The prompts of a capture in shards: read once to check and fingerprint all of them, and again to run them.

Holds one prompt at a time. Does not know plans or shards.
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.capture.prompts import TokenizedPrompt, tokenize_prompts
from engine.capture.run import Settings
from engine.capture.stacked import kept_tokens
from engine.concepts.prompt_file import PromptFile
from engine.errors import RequestError
from engine.records.files import PromptList

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PromptSource:
    """A file of prompts that must not change while it is read twice.

    Attributes:
        model: What the prompts are for.
        tokenizer: Its tokenizer.
        file: Where they come from.
        stamp: What the file's was when it was first looked at.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    file: PromptFile
    stamp: tuple[int, int]

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: PromptFile) -> PromptSource:
        """The prompts of a file as it is now."""
        return cls(model, tokenizer, file, file.stamp())

    def tokenize(self, texts: list[str], first: int) -> list[TokenizedPrompt]:
        """Token ids of some of the texts, of which the first has this number."""
        return tokenize_prompts(self.model, self.tokenizer, texts, rendered=False, first=first)

    def require_unchanged(self) -> None:
        """Refuse to go on with another file than was begun with.

        Raises:
            RequestError: It was changed.
        """
        if self.file.stamp() != self.stamp:
            raise RequestError(f"{self.file.path} was changed while it was captured", next_step="capture it again")


def survey_prompts(source: PromptSource, settings: Settings) -> PromptList:
    """Check, count and fingerprint every prompt, holding one.

    Args:
        source: The prompts.
        settings: What is kept of each.

    Raises:
        CaptureError: A prompt is empty or too long.
        RequestError: The file cannot be read, or a prompt does not have the positions.
    """
    texts, ids = hashlib.sha256(), hashlib.sha256()
    count, tokens, kept = 0, 0, 0
    for count, text in enumerate(source.file.texts(), start=1):
        (prompt,) = source.tokenize([text], count - 1)
        encoded = text.encode()
        texts.update(len(encoded).to_bytes(8, "little") + encoded)
        ids.update(len(prompt.ids).to_bytes(8, "little") + array("q", prompt.ids).tobytes())
        tokens += len(prompt.ids)
        kept = max(kept, kept_tokens(settings, prompt))
    return PromptList(
        file=source.file.path.name,
        count=count,
        tokens=tokens,
        kept=kept,
        texts=texts.hexdigest(),
        ids=ids.hexdigest(),
    )
