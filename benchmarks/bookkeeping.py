"""Measure the overhead of a capture: CPU time per prompt outside the decoder.

On a fast GPU this overhead limits the capture of a small model. The benchmark uses a random model with the depth of the
default model (30 layers) and a ninth of its width, so that forward passes are short. It runs on one thread and captures
all layers of prompts without a shared prefix.

Examples:
    .venv/bin/python benchmarks/bookkeeping.py                                # 2,000 prompts
    .venv/bin/python benchmarks/bookkeeping.py --prompts 500 --tokens 4096    # token budget of a GPU
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

sys.path.insert(0, str(Path(__file__).parents[1]))  # measure this checkout, not an installed version

import engine
from benchmarks.tasks import positive

Args = ParamSpec("Args")
Out = TypeVar("Out")

PERSONAS = ("keeper of the lighthouse", "last speaker of a language", "judge in a small town", "maker of clocks")


class Clock:
    """Accumulates the processor time of a function.

    Attributes:
        seconds: Processor time so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[Args, Out]) -> Callable[Args, Out]:
        """Wrap a function to time it.

        Calls that raise count too, because a forward pass that stops early ends with an exception.
        """

        @functools.wraps(function)
        def run(*args: Args.args, **kwargs: Args.kwargs) -> Out:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - start

        return run


def synthetic_prompts(count: int) -> list[str]:
    """Prompts of about 45 tokens that differ from the first token on."""
    return [
        f"{number}. You are the {PERSONAS[number % len(PERSONAS)]}, and you answer in plain words, never more than you"
        " were arguments. What would you tell a stranger who comes to your door at night and wants to know the way?"
        for number in range(count)
    ]


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=positive, default=2000, help="Number of prompts")
    parser.add_argument("--tokens", type=positive, default=512, help="Token budget of a batch")
    parser.add_argument("--rounds", type=positive, default=3, help="Number of rounds")
    arguments = parser.parse_args()
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
    model, texts, inside = LlamaForCausalLM(shape).eval(), synthetic_prompts(arguments.prompts), Clock()
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
        "prompts saved as shards": in_shards,
    }
    with patch("engine.capture.run_settings.token_budget", lambda *_args, **_options: arguments.tokens):
        for name, capture in ways.items():
            for positions in ("last", "mean"):
                seconds = []
                for _ in range(arguments.rounds):
                    start, inside.seconds = time.process_time(), 0.0
                    capture(positions)
                    seconds.append(time.process_time() - start - inside.seconds)
                print(
                    f"{name + ', ' + positions:<30} {1e3 * statistics.median(seconds) / len(texts):6.2f} ms per prompt"
                )


if __name__ == "__main__":
    main()
