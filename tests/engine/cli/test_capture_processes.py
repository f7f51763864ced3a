"""`layerscope capture --prompts` in several processes: same files, one log."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from shutil import which

import psutil
import pytest

from tests.engine.test_runtime import ended_at_last, started
from tests.program import Program, Result

TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node")
ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes"),
)
_CAPTURE = "import runpy; runpy.run_module('engine', run_name='__main__', alter_sys=True)"


def command(folder: Path, output: str, prompts: str = "many.txt") -> tuple[str, ...]:
    asked = ("capture", "--model", str(folder), "--device", "cpu", "--positions", "last")
    return (*asked, "--prompts", prompts, "--output", output)


def launched(program: Program, *launcher: str, **environment: str) -> Result:
    return program.python(*launcher, **environment)


def write_prompts(path: Path, count: int) -> None:
    path.write_text("".join(f"w{3 + i % 100} w{3 + i // 100 % 100} w7\n" for i in range(count)))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def record(program: Program, name: str) -> dict[str, object]:
    content = json.loads((program.folder / f"{name}.json").read_text())
    return {key: value for key, value in content.items() if key not in {"name", "created", "data"}}


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(TORCHRUN, id="torchrun", marks=pytest.mark.slow),
        pytest.param(ACCELERATE, id="accelerate", marks=pytest.mark.slow),
    ],
)
def test_two_processes_write_what_one_writes(layerscope: Program, tiny_folder: Path, launcher: tuple[str, ...]) -> None:
    write_prompts(layerscope.folder / "many.txt", 2600)
    one = layerscope(*command(tiny_folder, "one"))
    assert one.returncode == 0, one.stderr
    result = launched(layerscope, *launcher, "2", "-m", "engine", *command(tiny_folder, "two"))
    assert result.returncode == 0, result.stderr
    assert files(layerscope.folder / "two") == files(layerscope.folder / "one")
    assert record(layerscope, "two") == record(layerscope, "one")
    assert result.stdout == one.stdout.replace("one", "two", 1)
    assert result.stderr.count("load check passed") == 1
    assert result.stderr.count("saved two/ and two.json") == 1


@pytest.mark.slow
def test_weights_on_disk_are_read_by_each_process(layerscope: Program, tiny_folder: Path) -> None:
    write_prompts(layerscope.folder / "many.txt", 5000)  # two shards, which are larger with offloaded weights

    def asked(name: str) -> list[str]:
        words = [*command(tiny_folder, name), "--device-map", "auto", "--max-memory", "cpu=0"]
        del words[words.index("--device") : words.index("--device") + 2]
        return words

    assert layerscope(*asked("one")).returncode == 0
    result = launched(layerscope, *TORCHRUN, "2", "-m", "engine", *asked("two"))
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("layers 0-3 on disk") == 1
    one, two = files(layerscope.folder / "one"), files(layerscope.folder / "two")
    assert len(one) == 3
    assert two == one


@pytest.mark.slow
def test_a_killed_process_ends_all_and_any_number_can_resume(layerscope: Program, tiny_folder: Path) -> None:
    write_prompts(layerscope.folder / "many.txt", 6000)
    assert layerscope(*command(tiny_folder, "one")).returncode == 0
    whole, folder = files(layerscope.folder / "one"), layerscope.folder / "mine"
    with subprocess.Popen(
        [sys.executable, *TORCHRUN, "2", "-m", "engine", *command(tiny_folder, "mine")],
        cwd=layerscope.folder,
        env=layerscope.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as launcher:
        while len(list(folder.glob("0*.safetensors"))) < 2 and launcher.poll() is None:
            time.sleep(0.005)
        (victim,) = [
            child
            for child in psutil.Process(launcher.pid).children(recursive=True)
            if child.environ().get("RANK") == "1"
        ]
        victim.send_signal(signal.SIGKILL)
        said, errors = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert said == ""
    # Whether it was running prompts, or waiting for the other process.
    ended = ("terminated by the launcher, probably because another process ended", "error: another process exited")
    assert any(f"rank 0 of 2: {how}" in errors for how in ended)
    assert "run the same command again to resume" in errors
    assert not (layerscope.folder / "mine.json").exists()
    saved = set(files(folder))
    assert 1 < len(saved) < len(whole)

    for number in ("3", "1"):
        result = launched(layerscope, *TORCHRUN, number, "-m", "engine", *command(tiny_folder, "mine"))
        assert result.returncode == 0, result.stderr
        assert files(folder) == whole
        assert record(layerscope, "mine") == record(layerscope, "one")
        (layerscope.folder / "mine.json").unlink()
        (folder / "000000000512.safetensors").unlink()


_PAIRS = """
import sys
import engine
from engine.runtime import ALONE
model, tokenizer, _ = engine.load_model_and_tokenizer(sys.argv[1], "cpu")
processes = engine.find_processes() if sys.argv[2] == "two" else ALONE
engine.capture_contrast_in_shards(model, tokenizer, "pairs.jsonl", sys.argv[2], processes=processes)
print(sorted(path.name for path in __import__("pathlib").Path().glob("*.json")))
"""


@pytest.mark.slow
def test_pairs_are_divided_and_ranked_once_by_the_main_process(layerscope: Program, tiny_folder: Path) -> None:
    with (layerscope.folder / "pairs.jsonl").open("w") as pairs:
        for i in range(700):
            factors = {"template": "t", "persona": f"p{i % 6}", "topic": f"w{40 + i % 9}"}
            text = f"w{40 + i % 9} w{3 + i % 30}"
            pairs.write(json.dumps({"positive": f"w5 {text}", "negative": f"w6 {text}", **factors}) + "\n")
    subprocess.run([sys.executable, "-c", _PAIRS, str(tiny_folder), "one"], cwd=layerscope.folder, check=True)
    here = str(layerscope.folder)
    processes = started(_PAIRS, str(tiny_folder), "two", folders=(here, here))
    with ended_at_last(processes):
        for process in processes:
            said, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
            assert "two.json" in said  # no process continues before the record is written
    assert len(files(layerscope.folder / "one")) == 4
    assert files(layerscope.folder / "two") == files(layerscope.folder / "one")
    assert record(layerscope, "two") == record(layerscope, "one")
    assert record(layerscope, "two")["ranking"]


@pytest.mark.slow
def test_a_capture_saved_as_one_file_is_not_shared(layerscope: Program, tiny_folder: Path) -> None:
    asked = ("capture", "--model", str(tiny_folder), "--prompt", "w5")
    result = launched(layerscope, *TORCHRUN, "2", "-m", "engine", *asked)
    assert result.returncode != 0
    assert "error: this capture is saved as one file, which 2 processes cannot share" in result.stderr
    assert "Next: run the command without a launcher" in result.stderr
    assert layerscope.saved() == []
    assert launched(layerscope, *TORCHRUN, "1", "-m", "engine", *asked).returncode == 0


@pytest.mark.slow
def test_processes_without_a_shared_folder_get_an_error(layerscope: Program, tiny_folder: Path) -> None:
    """Simulates two machines: the processes run in different folders."""
    write_prompts(layerscope.folder / "many.txt", 600)
    folders = (layerscope.folder / "a", layerscope.folder / "b")
    for folder in folders:
        folder.mkdir()
    asked = command(tiny_folder, "mine", str(layerscope.folder / "many.txt"))
    processes = started(_CAPTURE, *asked, folders=(str(folders[0]), str(folders[1])))
    with ended_at_last(processes):
        errors = [process.communicate(timeout=120)[1] for process in processes]
    assert "rank 1 of 2: error: this process cannot see mine/plan.json" in errors[1]
    assert "Expected: a folder shared by all processes on all machines" in errors[1]
    assert "rank 0 of 2: error: another process exited while this one was waiting for it" in errors[0]
    assert [process.returncode for process in processes] == [4, 5]
    assert list(folders[1].iterdir()) == []


_ONE_CANNOT = f"""
import os
if os.environ["RANK"] == "1":
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
{_CAPTURE}
"""


@pytest.mark.slow
@pytest.mark.skipif(which("c++") is None, reason="there is no C++ compiler")
def test_no_process_compiles_if_one_cannot(layerscope: Program, tiny_folder: Path) -> None:
    write_sharing_prompts(layerscope.folder / "many.txt")
    here = str(layerscope.folder)
    processes = started(_ONE_CANNOT, *command(tiny_folder, "two"), "--compile", folders=(here, here))
    with ended_at_last(processes):
        errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    said = " ".join(errors[0].split())
    assert "blocks are not compiled: process 1 of 2 cannot compile them: torch.compile is disabled" in said
    assert layerscope(*command(tiny_folder, "one")).returncode == 0
    two, one = files(layerscope.folder / "two"), files(layerscope.folder / "one")
    assert {name for name in one if one[name] != two[name]} <= {"plan.json"}


_BUDGETS = """
import sys
import engine
from engine.capture import budget, prepare, run_settings
folder, *names = sys.argv[1:]
model, tokenizer, _ = engine.load_model_and_tokenizer(folder, "cpu")
processes = engine.find_processes()
tried = []

def attempt(model, blocks, tokens, tolerance):
    tried.append((name, tokens))
    if name == f"exits-{processes.rank}":
        sys.exit(1)
    return "no compiler was found" if name == f"cannot-{processes.rank}" else ""

run_settings.why_not_compiled = attempt
sys.modules["engine.models.compiled"]._compiled = lambda forward: forward
prepare.pays_to_compile = lambda model, tokens: name == f"pays-{processes.rank}"
for name in names:
    budget._RUN_WELL["cpu"] = 64 if (name == "larger") == (processes.rank == 1) else 512
    compiled = None if name.startswith("pays") else True
    engine.capture_prompt_file(model, tokenizer, "many.txt", name, compiled=compiled, processes=processes)
print(tried)
"""
_COMPILED = ("smaller", "larger", "pays-0")


def write_sharing_prompts(path: Path) -> None:
    prefix = " ".join(f"w{n}" for n in range(20, 36))
    path.write_text("\n".join(f"{prefix} w{3 + i % 100} w{3 + i // 100} w{5 + i % 7}" for i in range(1100)))


@pytest.mark.slow
def test_other_processes_compile_for_the_token_budget_of_the_main_one(layerscope: Program, tiny_folder: Path) -> None:
    folders = {name: layerscope.folder / name for name in ("one", "two")}
    for folder in folders.values():
        folder.mkdir()
        write_sharing_prompts(folder / "many.txt")
    asked, two = (str(tiny_folder), *_COMPILED), str(folders["two"])
    processes = started(_BUDGETS, *asked, "pays-1", "cannot-1", folders=(two, two))
    with ended_at_last(processes):
        ended = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    tried = [("smaller", 64), ("larger", 512), ("pays-0", 64), ("cannot-1", 64)]
    assert [said.strip() for said, _ in ended] == [str(tried)] * 2
    provenance = {
        name: json.loads((folders["two"] / f"{name}.json").read_text())["provenance"]
        for name in (*_COMPILED, "pays-1", "cannot-1")
    }
    assert [(one["token_budget"], one.get("compiled")) for one in provenance.values()] == [
        *((64, "on"), (512, "on"), (64, "on"), (64, None)),
        (64, "no: process 1 of 2 cannot compile them: no compiler was found"),
    ]
    subprocess.run([sys.executable, "-c", _BUDGETS, *asked], cwd=folders["one"], check=True)
    for name in _COMPILED:
        assert files(folders["two"] / name) == files(folders["one"] / name)


@pytest.mark.slow
@pytest.mark.parametrize("gone", [0, 1])
def test_a_process_that_exits_while_it_compiles_ends_the_others(
    layerscope: Program, tiny_folder: Path, gone: int
) -> None:
    write_sharing_prompts(layerscope.folder / "many.txt")
    here = str(layerscope.folder)
    processes = started(_BUDGETS, str(tiny_folder), f"exits-{gone}", folders=(here, here))
    with ended_at_last(processes):
        errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], errors
    assert "another process exited while this one was waiting for it" in errors[1 - gone]
    assert not (layerscope.folder / f"exits-{gone}").exists()


@pytest.mark.slow
def test_a_refused_process_ends_the_others(layerscope: Program, tiny_folder: Path) -> None:
    """Without a launcher that would."""
    write_prompts(layerscope.folder / "many.txt", 600)
    assert layerscope(*command(tiny_folder, "mine")).returncode == 0
    (layerscope.folder / "mine.json").unlink()
    here = str(layerscope.folder)
    processes = started(_CAPTURE, *command(tiny_folder, "mine"), "--layers", "1", folders=(here, here))
    with ended_at_last(processes):
        errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [5, 4], errors
    assert "was started with different settings: layers was" in " ".join(errors[0].split())
    assert "another process exited while this one was waiting for it" in errors[1]
