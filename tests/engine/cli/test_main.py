"""The whole program: help, startup imports and exit codes."""

import json
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from engine.version import VERSION
from tests.engine.cli.conftest import assert_failed, save_record, widest
from tests.engine.plots.records import contrast_record
from tests.program import Program

COMMANDS = ["capture", "visualize", "rank", "compare", "directions", "read", "list", "show"]
COMMANDS += ["verify", "rename", "delete", "concepts", "vectors", "calibrate"]

WITH_A_BUG = """
import sys
import engine.store.catalog

def list_captures(*arguments, **options):
    return 1 / 0

engine.store.catalog.list_captures = list_captures
from engine.cli.main import main
sys.argv = ["layerscope", "list"]
main()
"""


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=["program", *COMMANDS])
def test_help_fits_80_columns_and_shows_examples_that_can_be_copied(layerscope: Program, command: list[str]) -> None:
    result = layerscope(*command, "--help", COLUMNS="80")
    assert (result.returncode, result.stderr) == (0, "")
    assert widest(result.stdout) <= 80
    _, heading, after = result.stdout.partition("Examples")
    assert heading
    examples = re.split(r"\n\s*\n", after.strip())[0].splitlines()
    begun = " ".join(["layerscope", *command])
    assert [line for line in examples if not line.strip().startswith(begun)] == []


def test_the_help_of_the_program_names_its_commands_and_exit_codes(layerscope: Program) -> None:
    shown = layerscope("--help", COLUMNS="80").stdout
    assert all(f"│ {name} " in shown for name in COMMANDS)
    assert "130 interrupted" in shown


# In the fast tier, the top-level help stands for all commands.
@pytest.mark.parametrize(
    "command",
    [pytest.param([], id="program"), *(pytest.param([name], id=name, marks=pytest.mark.slow) for name in COMMANDS)],
)
def test_all_ways_to_start_it_are_the_same_program(layerscope: Program, command: list[str]) -> None:
    """The script, the module, and the entry point as these tests call it."""
    script = layerscope.script(*command, "--help", COLUMNS="80")
    module = layerscope.child(*command, "--help", COLUMNS="80")
    assert (script.returncode, script.stderr) == (module.returncode, module.stderr) == (0, "")
    shown = module.stdout.replace("Usage: python -m engine", "Usage: layerscope")
    here = layerscope(*command, "--help", COLUMNS="80").stdout
    script_lines, module_lines, lines = (
        [line.rstrip() for line in text.splitlines()] for text in (script.stdout, shown, here)
    )
    assert script_lines == module_lines == lines


LIGHT = [
    ("--help",),
    ("--version",),
    ("capture", "--help"),
    ("capture", "--list-models"),
    ("capture", "--list-concepts"),
    ("list", "--store", "."),
    ("list",),
    ("show", "some_honesty"),
    ("rank", "some_honesty"),
    ("rank", "activations/some_honesty.pt", "--csv"),
    ("visualize", "some_honesty", "--no-plot"),
    ("verify", "--store", "."),
    ("delete", "--help"),
    ("compare", "--help"),
    ("directions", "--help"),
    ("read", "--help"),
    ("concepts",),
    ("concepts", "show", "honesty"),
    ("concepts", "check", "--help"),
]

# Several commands in one interpreter, each followed by a line with its unwanted imports.
IMPORTS = """
import json, sys
from engine.cli.main import main

for arguments in json.loads(sys.argv[1]):
    sys.argv = ["layerscope", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code, arguments
    heavy = {"torch", "transformers", "matplotlib", "numpy"} & sys.modules.keys()
    print("imported", arguments, sorted(heavy), "typer" in sys.modules, file=sys.stderr)
"""


def test_commands_without_a_model_load_no_torch(layerscope: Program) -> None:
    """Uses a fresh process, because this one has imported torch."""
    save_record(contrast_record(), layerscope.folder / "activations")
    result = layerscope.python("-c", IMPORTS, json.dumps(LIGHT))
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith("imported ")]
    assert said == [f"imported {[*arguments]} [] True" for arguments in LIGHT]


def test_version_is_printed(layerscope: Program) -> None:
    result = layerscope("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"layerscope {VERSION}\n", "")


def test_without_arguments_it_shows_the_help(layerscope: Program) -> None:
    assert layerscope().stdout.strip() == layerscope("--help").stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["capture", "--bogus"], "No such option: --bogus"),
        (["capure"], "No such command 'capure'"),
        (["show"], ""),
        (["visualize", "--quiet"], "Missing argument"),
    ],
    ids=["option", "command", "nothing", "argument"],
)
def test_wrong_usage_ends_with_2(layerscope: Program, arguments: list[str], said: str) -> None:
    result = layerscope(*arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_an_error_is_one_paragraph_with_a_next_step(layerscope: Program) -> None:
    result = layerscope("list")
    assert_failed(result, 5)
    assert re.fullmatch(r"error: the store .*\. Expected: .*\. Next: .*\n", result.stderr)


def test_an_error_with_a_question_is_not_followed_by_a_full_stop(layerscope: Program) -> None:
    result = layerscope("capture", "--concept", "honest")
    assert "did you mean 'honesty'? Expected:" in result.stderr


def test_a_bug_keeps_its_traceback_and_is_called_one(layerscope: Program) -> None:
    result = layerscope.python("-c", WITH_A_BUG)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert "ZeroDivisionError: division by zero" in result.stderr
    assert "this is a bug in layerscope" in result.stderr.splitlines()[-1]


def test_an_argument_that_is_not_utf8_is_refused(layerscope: Program) -> None:
    result = layerscope("capture", "--prompt", "bad \udcff")
    assert_failed(result, 2)
    assert r"argument 3 is not UTF-8: 'bad \udcff'" in result.stderr


@pytest.mark.parametrize(
    ("redirected", "said"),
    [
        (">&-", "Bad file descriptor"),
        pytest.param(
            ">/dev/full",
            "No space left on device",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full"),
        ),
    ],
)
def test_unwritable_standard_output_is_a_readable_error(layerscope: Program, redirected: str, said: str) -> None:
    command = layerscope.command("capture", "--list-concepts")
    result = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {redirected}', "sh", *command],
        env=layerscope.environment(),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 6
    assert re.fullmatch(rf"error: standard output cannot be written: {said}\. Expected: .*\n", result.stderr)


@pytest.mark.parametrize("module", ["engine.cli.main", "typer", "engine.cli.store", "rich.table"])
def test_an_interrupt_during_the_imports_prints_no_traceback(layerscope: Program, module: str) -> None:
    script = """
import signal, sys

class Interrupt:
    def find_spec(self, name, *_rest):
        if name == sys.argv[-1]:
            sys.argv.pop()
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from engine.__main__ import main
main()
"""
    result = layerscope.python("-c", script, "list", module)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full"])
def test_messages_that_cannot_be_written_do_not_cost_the_run(layerscope: Program, redirected: str) -> None:
    command = layerscope.command("capture", "--prompt", "hello", "--output", "here/said")
    result = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {redirected}', "sh", *command],
        cwd=layerscope.folder,
        env=layerscope.environment(),
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0
    assert "prompt" in result.stdout
    assert layerscope.saved() == ["here/said.json", "here/said.pt"]


def test_messages_into_a_pipe_without_a_reader_do_not_cost_the_run(layerscope: Program) -> None:
    with layerscope.started("capture", "--prompt", "hello", "--output", "here/said") as process:
        assert process.stderr is not None
        process.stderr.close()
        assert process.stdout is not None
        assert "prompt" in process.stdout.read()
        assert process.wait() == 0
    assert layerscope.saved() == ["here/said.json", "here/said.pt"]


@pytest.mark.parametrize("arguments", [["capture", "--list-concepts"], ["--help"]])
def test_a_closed_pipe_ends_it_quietly(layerscope: Program, arguments: list[str]) -> None:
    with layerscope.started(*arguments) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 141)


def test_a_checkout_that_is_not_installed_has_all_commands_and_its_version(layerscope: Program) -> None:
    """Python without site-packages, and a folder of links to all of them except layerscope."""
    packages = layerscope.folder / "packages"
    packages.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(("layerscope", "_layerscope")) and path.suffix != ".pth":
            (packages / path.name).symlink_to(path)
    code = (
        "from importlib.metadata import distributions; from engine.cli.console import installed_commands;"
        " from engine.capture.provenance import library_versions;"
        " assert not [found for found in distributions() if found.name == 'layerscope'];"
        " print([command.name for command in installed_commands()], library_versions()['layerscope'])"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=Path(__file__).parents[3],
        env=layerscope.environment(PYTHONPATH=str(packages)),
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert result.stdout == f"['serve', 'tui'] {VERSION}\n"
