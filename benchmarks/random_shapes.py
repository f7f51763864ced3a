"""Random models in the shapes of real ones, and the measurements that are made with them."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.comparison import amount_of_work, checked, choose_ways, print_table, skip, summarize
from benchmarks.machine import Machine
from benchmarks.tasks import Task, read_prompts
from benchmarks.ways import WAYS, Read, Work
from engine.capture.selection import parse_layers
from engine.models import forward
from engine.models.registry import DEFAULT_MODEL, find_source
from engine.models.sources import convert

if TYPE_CHECKING:
    import argparse

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ONE_PROMPT = (
    "The keeper of the lighthouse wrote down every ship that passed, and every ship that did not, until the winter in"
    " which the lamp was never lit."
)


@dataclass(frozen=True)
class Shape:
    """The shape of a model, and the number of prompts to measure it with.

    Attributes:
        like: The model that has this shape.
        prompts: Number of prompts.
        family: Model type of transformers.
        config: Its configuration; other values are the defaults of the family.
    """

    like: str
    prompts: int
    family: str
    config: dict[str, Any]

    def task(self, prompts: int | None, concept: str, machine: Machine) -> Task:
        """The capture to measure, with prompts of a concept, optionally another number of them."""
        says = f"last token of every layer, random weights in the shape of {self.like}, {machine.name()}"
        return Task(says, dtype="bfloat16", prompts=prompts or self.prompts, concept=concept)


SHAPES = {
    "8B": Shape(
        "Llama-3.1-8B",
        1024,
        "llama",
        {
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
        },
    ),
    "1.5B": Shape(
        "Qwen2.5-1.5B",
        2048,
        "qwen2",
        {
            "vocab_size": 151_936,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32_768,
            "tie_word_embeddings": True,
        },
    ),
    "135M": Shape(
        "SmolLM2-135M",
        2048,
        "llama",
        {
            "vocab_size": 49_152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "tiny": Shape(
        "a tiny Llama",
        32,
        "llama",
        {
            "vocab_size": 1024,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
}
GPU_SHAPES = ["8B", "1.5B", "135M"]
SHAPE_WAYS = ["plain_64", "expert", "hooks", "hidden_states"]


def load_tokenizer(folder: str | None) -> PreTrainedTokenizerBase:
    """Load a tokenizer alone: that of the default model, or from a folder.

    Raises:
        SystemExit: It has no chat template, so the prompts would be others.
    """
    if folder is None:
        source = find_source(DEFAULT_MODEL)
        folder = str(convert(source)) if source.gguf_file else source.location
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        sys.exit(f"the tokenizer in {folder} has no chat template: copy chat_template.jinja too")
    return tokenizer


def random_model(shape: Shape, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> PreTrainedModel:
    """Build a model in bfloat16 on its device.

    Its vocabulary covers that of the tokenizer. Its weights have the scale of SmolLM2's initial ones, adjusted to the
    width. Otherwise rounding errors would grow with the width, beyond what the check of the states tolerates.
    """
    largest = max(tokenizer.get_vocab().values())
    config = AutoConfig.for_model(shape.family, **shape.config)
    config.vocab_size = max(config.vocab_size, largest + 1)
    config.initializer_range = 0.02 * (SHAPES["135M"].config["hidden_size"] / config.hidden_size) ** 0.5
    torch.manual_seed(0)
    with device:  # so that the weights never pass through main memory
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.eval()
    return model


def time_in_turns(
    reads: dict[str, Read], texts: list[str], machine: Machine, rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Measure methods in turns, after one round that does not count."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in reads}
    for number in range(rounds + 1):
        for way, read in reads.items():
            entry = machine.measure(partial(read, texts))
            if number:
                found[way].append(entry)
    return found


def seconds_outside_decoder(capture: Callable[[], object], clock: Callable[[], float]) -> float:
    """Time the host part of a capture: everything but the forward passes of the decoder.

    Args:
        capture: Makes the capture.
        clock: Current time after pending work on the device has finished. Called around each forward pass, it prevents
            the host from working while the device does, so that no part is hidden behind another.

    Raises:
        RuntimeError: The capture did not call the timed function.
    """
    inside: list[float] = []
    run_decoder = forward.run_decoder

    def timed(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - the signature of `run_decoder`
        start = clock()
        try:
            return run_decoder(*args, **options)
        finally:  # a pass that stops early ends with an exception
            inside.append(clock() - start)

    with patch("engine.models.forward.run_decoder", timed):
        start = clock()
        capture()
        total = clock() - start
    if not inside:
        raise RuntimeError("the capture did not call engine.models.forward.run_decoder")
    return total - sum(inside)


def median_latency(reads: dict[str, Read], text: str, machine: Machine, times: int = 20) -> dict[str, float]:
    """Median seconds of each method for one prompt, in turns, after three rounds that do not count."""
    found: dict[str, list[float]] = {way: [] for way in reads}
    for number in range(times + 3):
        for way, read in reads.items():
            start = machine.clock()
            read([text])
            if number >= 3:
                found[way].append(machine.clock() - start)
    return {way: statistics.median(seconds) for way, seconds in found.items()}


@torch.no_grad()
def measure_shape(name: str, arguments: argparse.Namespace) -> None:
    """Measure all methods with a random model of one shape, and print the table and the host part of a capture."""
    torch.set_num_threads(arguments.threads)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    machine = Machine(torch.device(device), arguments.threads)
    task, tokenizer = (
        SHAPES[name].task(arguments.prompts, arguments.concept, machine),
        load_tokenizer(arguments.tokenizer),
    )
    model, texts = random_model(SHAPES[name], tokenizer, machine.device), read_prompts(tokenizer, task)
    work = Work(model, tokenizer, parse_layers(task.layers, model.config.num_hidden_layers), task.positions)
    amount, reads = amount_of_work(work, texts, machine), {}
    for way in choose_ways([*(arguments.ways or SHAPE_WAYS), *(["compiled"] if arguments.compile else [])], task):
        read, says = checked(way, work, texts)
        if read is None:
            skip(way, says, arguments.ways)
            continue
        print(f"{way}: {says}", file=sys.stderr)
        reads[way] = read
    rows = time_in_turns(reads, texts, machine, arguments.rounds)
    found = {way: summarize(amount, entries) for way, entries in rows.items()}
    print_table(task, found, arguments.rounds, markdown=arguments.markdown)
    one = {way: WAYS[way].prepare(work) for way in ("plain_64", "hooks")}
    capture = partial(one["hooks"], texts)
    host = statistics.median(seconds_outside_decoder(capture, machine.clock) for _ in range(arguments.rounds))
    latency = {way: 1e3 * seconds for way, seconds in median_latency(one, ONE_PROMPT, machine).items()}
    print(
        f"\nhost part of layerscope, --use-hooks: {host:.3f} s, {1e3 * host / task.prompts:.3f} ms per prompt"
        f"\none prompt of {len(tokenizer(ONE_PROMPT)['input_ids'])} tokens: plain forward {latency['plain_64']:.1f} ms,"
        f" layerscope, --use-hooks {latency['hooks']:.1f} ms",
        flush=True,
    )


def measure_shapes(arguments: argparse.Namespace) -> None:
    """Measure each shape in a process of its own.

    Raises:
        SystemExit: A process failed; the others have run.
    """
    failed = []
    for name in arguments.shapes or GPU_SHAPES:
        process = get_context("spawn").Process(target=measure_shape, args=(name, arguments))
        process.start()
        process.join()
        if process.exitcode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
