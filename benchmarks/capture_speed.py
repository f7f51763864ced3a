"""How fast a capture is, next to what one would do without layerscope, and how much memory it takes.

Every way of doing the same work runs in a process of its own, and the processes take turns, so that a machine that is
busy with something else is busy for all of them. Printed are medians over rounds: speed relative to a plain batched
forward pass without any capture (1.0), tokens a second, the most memory held while at work, and what the blocks' matrix
products alone would take at the speed that this machine's matrix products are measured to have, as a share of the time:
above 100% means that fewer of them were computed than the prompts have tokens for.

Examples:
    .venv/bin/python benchmarks/capture_speed.py                            # 128 chat prompts, last token, all layers
    .venv/bin/python benchmarks/capture_speed.py --task system --rounds 5   # a shared system prompt of 150 tokens
    .venv/bin/python benchmarks/capture_speed.py --task all --markdown      # the tables of docs/performance.md
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/capture_speed.py --threads 1   # on a machine that is not idle
    .venv/bin/python benchmarks/capture_speed.py --ways plain hooks --model my/folder
    .venv/bin/python benchmarks/capture_speed.py --ways hooks hooks_disk    # what weights on the disk cost
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it measures this checkout

PLAIN_BATCH = 16
SYSTEM_TOKENS = 150


@dataclass(frozen=True)
class Task:
    """What is captured.

    Attributes:
        says: In words.
        layers: Layers wanted.
        positions: Tokens wanted.
        dtype: Of the model.
        prompts: How many; 1 is a single text of some 77 tokens.
        system: Whether all prompts begin with one system prompt of 150 tokens.
    """

    says: str
    layers: str = "all"
    positions: str = "last"
    dtype: str = "float32"
    prompts: int = 128
    system: bool = False


TASKS = {
    "contrast": Task("chat prompts of 64 pairs, last token of every layer"),
    "recommended": Task("the same, recommended layers", layers="recommended"),
    "system": Task("64 pairs that share a system prompt of 150 tokens, last token of every layer", system=True),
    "bfloat16": Task("64 pairs in bfloat16, last token of every layer", dtype="bfloat16"),
    "single": Task("one prompt, every token of every layer", positions="all", prompts=1),
}
WAYS = {
    "howto": "one prompt at a time, output_hidden_states",
    "plain": f"plain forward, batches of {PLAIN_BATCH}, no capture",
    "hidden_states": "layerscope",
    "hooks": "layerscope, --use-hooks",
    "hooks_disk": "the same, all weights on the disk",
}


def read_prompts(tokenizer: PreTrainedTokenizerBase, task: Task) -> list[str]:
    """The texts: pairs of the built-in concept honesty in the model's chat template."""
    from engine.concepts.catalog import load_concept
    from engine.concepts.rendered import render_pairs

    if task.prompts == 1:
        return ["The keeper of the lighthouse wrote down every ship that passed, and every ship that did not. " * 4]
    pairs = render_pairs(tokenizer, load_concept("honesty"), task.prompts // 2, 0)
    texts = [*pairs.positive, *pairs.negative]
    if not task.system:
        return texts
    rule = " You answer in plain words, you never repeat the question, and you keep to what was asked of you."
    while len(tokenizer(rule)["input_ids"]) < SYSTEM_TOKENS:
        rule += rule[: rule.index(",") + 1]
    ids = tokenizer(rule)["input_ids"][:SYSTEM_TOKENS]
    return [tokenizer.decode(ids) + text for text in texts]


def find_way(
    way: str, task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> Callable[[], object]:
    """The function that does the whole work once."""
    import engine

    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    def howto() -> object:
        kept = []
        for row in ids:
            states = model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[1:]
            kept.append([s.cpu() if task.positions == "all" else s[:, -1].clone() for s in states])
        return kept

    def plain() -> None:
        for start in range(0, len(ids), PLAIN_BATCH):
            rows = ids[start : start + PLAIN_BATCH]
            width = max(map(len, rows))
            model(
                input_ids=torch.tensor([row + [0] * (width - len(row)) for row in rows]),
                attention_mask=torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
                use_cache=False,
            )

    if way in ("howto", "plain"):
        return torch.no_grad()(howto if way == "howto" else plain)
    options: dict[str, Any] = {"layers": task.layers, "positions": task.positions, "use_hooks": way.startswith("hooks")}
    return lambda: engine.capture_activations(model, tokenizer, texts, rendered=True, **options)


def serve_way(way: str, task: Task, model_name: str, threads: int) -> None:
    """The child: say how much work there is, then do it once for each line on stdin and say how long it took."""
    import engine

    torch.set_num_threads(threads)
    where: dict[str, Any] = {"device": "cpu"}
    if way == "hooks_disk":
        where = {"device_map": "auto", "max_memory": {"cpu": 0}}
    model, tokenizer, _ = engine.load_model_and_tokenizer(model_name, dtype=task.dtype, **where)
    texts = read_prompts(tokenizer, task)
    do = find_way(way, task, model, tokenizer, texts)
    find_way(way, task, model, tokenizer, texts[:2])()  # whatever happens once only
    tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    blocks = sum(
        weight.numel() for name, weight in model.named_parameters() if weight.dim() == 2 and ".layers." in name
    )
    print(json.dumps({"tokens": tokens, "products": 2 * blocks * tokens, "gemm": gemm_speed(model)}), flush=True)
    reset_peak()
    clock = time.process_time if threads == 1 else time.perf_counter
    for _line in sys.stdin:
        begun = clock()
        do()
        print(json.dumps({"seconds": clock() - begun, "peak": peak_mb()}), flush=True)


def gemm_speed(model: PreTrainedModel) -> float:
    """Operations a second of the largest matrix in a block times 512 tokens, the best of several ways and times."""
    largest = max((w for w in model.parameters() if w.dim() == 2 and len(w) < 32_000), key=lambda w: w.numel())
    weight = torch.randn(largest.shape, dtype=largest.dtype)  # the model's own may lie on the disk
    states = torch.randn(512, weight.shape[1], dtype=weight.dtype)
    mkldnn = torch.backends.mkldnn.matmul
    before, best = mkldnn.fp32_precision, 0.0
    with torch.no_grad():
        for precision in ("none", "bf16"):
            mkldnn.fp32_precision = precision
            for _ in range(30):
                begun = time.perf_counter()
                torch.nn.functional.linear(states, weight)
                best = max(best, 2 * weight.numel() * len(states) / (time.perf_counter() - begun))
    mkldnn.fp32_precision = before
    return best


def reset_peak() -> None:
    """Forget the memory that loading took, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_mb() -> float:
    """Most memory held since, in MB; where the system cannot tell, since the process began."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def measure(name: str, ways: list[str], rounds: int, model: str, threads: int) -> dict[str, dict[str, float]]:
    """Let the ways of one task take turns.

    Returns:
        Way to `seconds` (median), `peak` (MB), `tokens`, and `share` of the measured speed of matrix products.
    """
    command = [sys.executable, __file__, "--task", name, "--model", model, "--threads", str(threads), "--serve"]
    children = {
        way: subprocess.Popen([*command, way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        for way in ways
    }
    work = {way: read_line(child) for way, child in children.items()}
    told: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, child in children.items():
            print("go", file=child.stdin, flush=True)
            told[way].append(read_line(child))
    for child in children.values():
        child.communicate()
    gemm = max(entry["gemm"] for entry in work.values())
    return {
        way: {
            "seconds": (seconds := statistics.median(entry["seconds"] for entry in rows)),
            "peak": max(entry["peak"] for entry in rows),
            "tokens": work[way]["tokens"],
            "share": work[way]["products"] / gemm / seconds,
            "gemm": gemm,
        }
        for way, rows in told.items()
    }


def read_line(child: subprocess.Popen[str]) -> dict[str, float]:
    """What a child says next."""
    line = child.stdout.readline() if child.stdout else ""
    if not line:
        sys.exit(f"a way of doing the work failed: {child.args}")
    answer: dict[str, float] = json.loads(line)
    return answer


def print_table(task: Task, found: dict[str, dict[str, float]], rounds: int, *, markdown: bool) -> None:
    """One task; the speed is relative to the plain forward, or to the first way where that was left out."""
    base = found.get("plain", next(iter(found.values())))["seconds"]
    first = next(iter(found.values()))
    print(
        f"\n{task.prompts} x {first['tokens'] / task.prompts:.0f} tokens, {task.says}; {task.dtype};"
        f" medians of {rounds} rounds; matrix products reach {first['gemm'] / 1e9:.0f} GFLOP/s\n"
    )
    bar = "|" if markdown else ""
    print(f"{bar}{'':<46}{bar} speed {bar} seconds {bar} tokens/s {bar} peak MB {bar} of GEMM {bar}")
    if markdown:
        print("| --- | --- | --- | --- | --- | --- |")
    for way, row in found.items():
        print(
            f"{bar}{WAYS[way]:<46}{bar} {base / row['seconds']:>5.2f} {bar} {row['seconds']:>7.2f} {bar}"
            f" {row['tokens'] / row['seconds']:>8,.0f} {bar} {row['peak']:>7,.0f} {bar} {row['share']:>7.0%} {bar}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=[*TASKS, "all"], default="contrast", help="what is captured")
    parser.add_argument(
        "--ways", nargs="+", choices=list(WAYS), default=list(WAYS)[:-1], help="how; all but the last unless told"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how many times each")
    parser.add_argument("--model", default="smollm2", help="as layerscope capture --model takes it")
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="of torch; with 1, seconds are those of the processor, whatever else the machine is busy with",
    )
    parser.add_argument("--markdown", action="store_true", help="print tables for docs/performance.md")
    parser.add_argument("--serve", choices=list(WAYS), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve_way(asked.serve, TASKS[asked.task], asked.model, asked.threads)
        return
    for name in TASKS if asked.task == "all" else [asked.task]:
        found = measure(name, asked.ways, asked.rounds, asked.model, asked.threads)
        print_table(TASKS[name], found, asked.rounds, markdown=asked.markdown)


if __name__ == "__main__":
    main()
