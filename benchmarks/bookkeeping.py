"""What a capture costs besides the model: the processor's time that a prompt takes outside the decoder's passes.

On a fast GPU this is what bounds the capture of a small model. Measured with a made-up model of the default model's
depth (30 layers) and a ninth of its width, whose passes are short; one thread, prompts that share nothing, all layers.

Usage:
    .venv/bin/python benchmarks/bookkeeping.py                                # 2,000 prompts
    .venv/bin/python benchmarks/bookkeeping.py --prompts 500 --tokens 4096    # in passes of the size that a GPU runs
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar
from unittest.mock import patch

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it measures this checkout

import engine

Args = ParamSpec("Args")
Out = TypeVar("Out")

PERSONAS = ("keeper of the lighthouse", "last speaker of a language", "judge in a small town", "maker of clocks")


class Clock:
    """Counts the processor's seconds that a function takes.

    Attributes:
        seconds: So far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[Args, Out]) -> Callable[Args, Out]:
        """The function, counted; also when it is left by an exception, as a pass that stops early is."""

        @functools.wraps(function)
        def run(*args: Args.args, **kwargs: Args.kwargs) -> Out:
            begun = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - begun

        return run


def made_up_prompts(count: int) -> list[str]:
    """Prompts of some 45 tokens that differ from the first on."""
    return [
        f"{number}. You are the {PERSONAS[number % len(PERSONAS)]}, and you answer in plain words, never more than you"
        " were asked. What would you tell a stranger who comes to your door at night and wants to know the way?"
        for number in range(count)
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2000, help="how many")
    parser.add_argument("--tokens", type=int, default=512, help="most tokens in a pass")
    parser.add_argument("--rounds", type=int, default=3, help="how many times each")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    _, tokenizer, _ = engine.load_model_and_tokenizer("smollm2", device="cpu")
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=30,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    model, texts, inside = LlamaForCausalLM(shape).eval(), made_up_prompts(asked.prompts), Clock()
    model.model.forward = inside.timed(model.model.forward)
    half = len(texts) // 2

    def in_shards(positions: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "prompts.txt"
            file.write_text("\n".join(texts))
            engine.capture_prompt_file(model, tokenizer, file, Path(folder) / "capture", positions=positions)

    ways: dict[str, Callable[[str], object]] = {
        "prompts in memory": lambda positions: engine.capture_activations(
            model, tokenizer, texts, use_hooks=True, positions=positions
        ),
        "pairs in memory": lambda positions: engine.capture_contrastive_activations(
            model, tokenizer, texts[:half], texts[half:], use_hooks=True, positions=positions
        ),
        "prompts into shards": in_shards,
    }
    with patch("engine.capture.settings.token_budget", lambda *_args, **_options: asked.tokens):
        for name, capture in ways.items():
            for positions in ("last", "mean"):
                seconds = []
                for _ in range(asked.rounds):
                    begun, inside.seconds = time.process_time(), 0.0
                    capture(positions)
                    seconds.append(time.process_time() - begun - inside.seconds)
                print(f"{name + ', ' + positions:<28} {1e3 * statistics.median(seconds) / len(texts):6.2f} ms a prompt")


if __name__ == "__main__":
    main()
