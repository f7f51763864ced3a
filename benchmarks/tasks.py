"""Tasks of the speed benchmark: prompts, positions and layers to capture."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.concepts.catalog import load_concept
from engine.concepts.pairs import render_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM_TOKENS = 150
PROMPTS = str(Path(__file__).with_name("prompts.toml"))
"""A concept that no longer changes, so that speeds of different versions compare."""


@dataclass(frozen=True)
class Task:
    """A capture to measure.

    Attributes:
        says: Description for the table.
        layers: Layers to capture.
        positions: Positions to capture.
        dtype: Dtype of the model.
        prompts: Number of prompts; 1 is a single text of about 77 tokens.
        system: Whether all prompts share a system prompt of 150 tokens.
        concept: Concept of the prompts, a built-in one or a file.
    """

    says: str
    layers: str = "all"
    positions: str = "last"
    dtype: str = "float32"
    prompts: int = 128
    system: bool = False
    concept: str = PROMPTS


TASKS = {
    "contrast": Task("chat prompts of 64 pairs, last token of every layer"),
    "recommended": Task("the same, recommended layers", layers="recommended"),
    "system": Task("64 pairs that share a system prompt of 150 tokens, last token of every layer", system=True),
    "bfloat16": Task("64 pairs in bfloat16, last token of every layer", dtype="bfloat16"),
    "single": Task("one prompt, every token of every layer", positions="all", prompts=1),
}


def positive(text: str) -> int:
    """Parse a number of an option that cannot be 0.

    Raises:
        ArgumentTypeError: It is not a whole number of at least 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def read_prompts(tokenizer: PreTrainedTokenizerBase, task: Task) -> list[str]:
    """Render the prompts of a task: pairs of its concept in the chat template."""
    if task.prompts == 1:
        return ["The keeper of the lighthouse wrote down every ship that passed, and every ship that did not. " * 4]
    pairs = render_pairs(tokenizer, load_concept(task.concept), task.prompts // 2, 0)
    texts = [*pairs.positive, *pairs.negative]
    if not task.system:
        return texts
    rule = " You answer in plain words, you never repeat the question, and you keep to what was asked of you."
    while len(tokenizer(rule)["input_ids"]) < SYSTEM_TOKENS:
        rule += rule[: rule.index(",") + 1]
    ids = tokenizer(rule)["input_ids"][:SYSTEM_TOKENS]
    return [f"{tokenizer.decode(ids)}{text}" for text in texts]
