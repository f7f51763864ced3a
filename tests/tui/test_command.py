"""`layerscope tui` from the command line: in a terminal, into a pipe, in a browser, and with wrong arguments."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.program import Program, Result
from tests.tui.screen_text import wait_for
from tui.app import LayerscopeApp


def tui(*arguments: str, cwd: Path, **environment: str) -> Result:
    """Run the command without a terminal."""
    return Program(cwd)("tui", *arguments, **environment)


def test_a_pipe_gets_the_list_as_plain_text(store: Path) -> None:
    result = Program(store.parent).child("tui")  # a real pipe
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["small_warmth", "small_calm", "some_prompt"]
    assert "2.00 (1.50 to 2.50)" in lines[1]
    assert "small_lost is damaged: small_lost.pt is missing" in result.stdout


def test_a_pipe_gets_the_filtered_list_or_the_table_of_a_capture(store: Path) -> None:
    assert "small_warmth" not in tui("--filter", "layer:9", cwd=store.parent).stdout
    table = tui(str(store / "small_warmth.pt"), cwd=store.parent.parent).stdout
    assert "warmth" in table
    assert re.search(r"^ +16 +1=", table, re.MULTILINE)


@pytest.mark.parametrize("given", ["small_warmth", "activations/small_warmth", "activations/small_warmth/"])
def test_a_folder_of_shards_is_a_capture_not_a_store(store: Path, given: str) -> None:
    whole = tui("small_warmth", cwd=store.parent).stdout
    folder = store / "small_warmth"
    folder.mkdir()
    (store / "small_warmth.pt").rename(folder / "000000000000.safetensors")
    (folder / "plan.json").write_text("{}")
    result = tui(given, cwd=store.parent)
    assert result.returncode == 0, result.stderr
    assert result.stdout == whole


def test_an_empty_store_explains_how_to_make_a_capture(tmp_path: Path) -> None:
    for arguments, said in (
        ((), ""),
        (("my runs/",), " --output 'my runs/'"),
        (("--store", "runs"), " --output runs/"),
    ):
        result = tui(*arguments, cwd=tmp_path)
        assert result.returncode == 0
        assert result.stderr == f"no captures yet; create one: layerscope capture --concept honesty{said}\n"


def test_another_store_as_in_other_commands(store: Path) -> None:
    listed, table = tui(cwd=store.parent).stdout, tui("small_warmth", cwd=store.parent).stdout
    store.rename(store.with_name("runs"))
    assert tui("--store", "runs", cwd=store.parent).stdout == listed
    assert tui("small_warmth", "-s", "runs", cwd=store.parent).stdout == table
    assert tui("runs/small_warmth", "--store", "other", cwd=store.parent).stdout == table
    (store.parent / "small_warmth").mkdir()  # a folder with the name of a capture is not a store, if there is one
    assert tui("small_warmth", "--store", "runs", cwd=store.parent).stdout == table


def test_the_browser_opens_the_same_store(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[list[str]] = []
    monkeypatch.setattr("tui.browser.serve_in_browser", lambda arguments, _port: served.append(arguments))
    store.rename(store.with_name("my runs"))
    assert tui("small_warmth", "--store", "my runs", "--serve", cwd=store.parent).returncode == 0
    assert served == [["tui", "small_warmth", "--store", "my runs"]]
    assert "warmth" in Program(store.parent)(*served[0]).stdout


@pytest.mark.anyio
async def test_the_app_uses_the_store_that_is_given(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[LayerscopeApp] = []
    monkeypatch.setattr(LayerscopeApp, "run", lambda app: started.append(app))
    monkeypatch.setattr("tui.command._is_served", lambda: True)
    store.rename(store.with_name("runs"))
    assert tui("small_warmth", "--store", "runs", cwd=store.parent).returncode == 0
    monkeypatch.chdir(store.parent)
    async with started[0].run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, "warmth", "projections at layer 16")
        await pilot.press("escape")
        await wait_for(pilot, "4 captures", "runs")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "there is no folder 'nowhere', and no capture of that name in 'activations'"),
        (["nowhere"], "Next: layerscope tui FOLDER opens another store"),
        (["--filter", "pears:1"], "pears"),
        (["--max-memory", "1GB"], "--device-map"),
        (["nowhere", "--store", "runs"], "and no capture of that name in 'runs'"),
        (["activations", "--store", "runs"], "'activations' and --store both name a folder of captures"),
        (["activations/", "--store", "runs"], "'activations/' and --store both name a folder of captures"),
        (["small_warmth", "--layer", "many"], "--layer"),
        (["--port", "0", "--serve"], "port"),
    ],
)
def test_wrong_arguments(store: Path, arguments: list[str], said: str) -> None:
    result = tui(*arguments, cwd=store.parent)
    assert result.returncode != 0
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_help_has_examples(tmp_path: Path) -> None:
    result = tui("--help", cwd=tmp_path, COLUMNS="100")
    for text in ("Examples", "--filter", "--serve", "--theme", "--layer"):
        assert text in result.stdout


def test_browsing_loads_neither_torch_nor_transformers(store: Path) -> None:
    script = """
import asyncio, sys
from pathlib import Path
from tests.tui.screen_text import wait_for
from tui.app import LayerscopeApp

async def look():
    async with LayerscopeApp(Path("activations")).run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, "4 captures", "layer 16,")
        await pilot.press("enter", "space", "G", "2", "3", "4", "escape", "n")
        await wait_for(pilot, "New capture")

asyncio.run(look())
print(sorted({"torch", "transformers", "numpy", "matplotlib"} & sys.modules.keys()))
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=store.parent,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=120,
    )
    assert result.stdout.strip() == "[]", result.stderr


class Terminal:
    """A real terminal of 100 by 30 characters, in tmux."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self._tmux = ["tmux", "-L", f"layerscope-{os.getpid()}-{folder.name}", "-f", "/dev/null"]
        variables = [word for name, value in environment.items() for word in ("-e", f"{name}={value}")]
        program = shlex.join([sys.executable, "-m", "engine", "tui", *arguments])
        command = ["sh", "-c", f"{program}; echo ended with $?; exec sleep 1000"]
        start = ["new-session", "-d", "-x", "100", "-y", "30", "-c", str(folder), *variables, "--", *command]
        subprocess.run([*self._tmux, *start], check=True)

    def press(self, *keys: str) -> None:
        """Press keys, by their tmux names."""
        subprocess.run([*self._tmux, "send-keys", *keys], check=True)

    def text(self, *options: str) -> str:
        """Return the text on the terminal."""
        command = [*self._tmux, "capture-pane", "-p", "-S", "-", *options]
        return subprocess.run(command, check=True, capture_output=True).stdout.decode()

    def wait_for(self, *wanted: str) -> str:
        """Wait until the terminal shows all the texts."""
        return self.wait_until(lambda text: all(part in text for part in wanted), str(wanted))

    def wait_until(self, ready: Callable[[str], bool], what: str) -> str:
        """Wait until the terminal's text satisfies a condition."""
        for _ in range(600):
            text = self.text()
            if ready(text):
                return text
            time.sleep(0.1)
        raise AssertionError(f"timed out waiting for {what}\n{text}")

    def close(self) -> None:
        """Kill the tmux server and its programs."""
        subprocess.run([*self._tmux, "kill-server"], check=False)


@pytest.fixture
def terminal(real_store: Path) -> Iterator[Callable[..., Terminal]]:
    """Open terminals in the folder of the real captures."""
    if not shutil.which("tmux"):
        pytest.skip("tmux is not installed")
    opened: list[Terminal] = []

    def open_terminal(*arguments: str, **environment: str) -> Terminal:
        configuration = os.environ["XDG_CONFIG_HOME"]
        terminal = Terminal(real_store.parent, *arguments, XDG_CONFIG_HOME=configuration, **environment)
        opened.append(terminal)
        return terminal

    yield open_terminal
    for one in opened:
        one.close()


def test_in_a_terminal_from_start_to_quit(terminal: Callable[..., Terminal]) -> None:
    shell = terminal()
    shell.wait_for("2 captures", "tiny_loud", "Highest: layer")
    shell.press("/")
    shell.wait_for("words, or column:value")
    shell.press("w", "a", "r", "m", "Enter")
    shell.wait_for("1 of 2 captures", "tiny_warm")
    shell.press("Enter")
    shell.wait_for("Held-out projections at layer")
    shell.press("r")
    shell.wait_for("rank▲")
    shell.press("t")
    shell.wait_for("token 1 'w30' at layer")
    shell.press("Escape")
    shell.wait_for("rank▲")
    shell.press("Escape")
    shell.wait_for("1 of 2 captures")
    shell.press("q")
    shell.wait_for("ended with 0")


def test_quitting_while_a_capture_runs_asks_and_stops_it(terminal: Callable[..., Terminal], real_store: Path) -> None:
    long = " ".join(f"w{number}" for number in range(10, 68))  # the model's maximum length
    texts = [f"w{number % 100 + 3} w{number // 100 + 3} {long}" for number in range(9000)]
    real_store.with_name("asked.txt").write_text("\n".join(texts))
    shell = terminal()
    shell.wait_for("2 captures", "Highest: layer")
    shell.press("n")
    shell.wait_for("Enter estimates")
    shell.press(*"asked.txt", "BTab")
    shell.press("C-u")
    shell.wait_for("asked.txt", "alias, hub ID, folder")
    shell.press(*"tiny")
    shell.wait_for("Model       tiny")
    shell.press("Enter")
    shell.wait_for("9,000 prompts", "Enter starts the capture")
    shell.press("Enter")
    shell.wait_for("running prompts", "/9000")
    shell.press("q")
    shell.wait_for("Stop and quit?", "capturing tiny_asked")
    shell.press("n")
    shell.wait_until(lambda text: "Stop and quit?" not in text and "running prompts" in text, "the capture")
    shards = real_store / "tiny_asked"
    shell.wait_until(lambda _text: any(shards.glob("*.safetensors")), "a shard")
    shell.press("C-q")
    shell.wait_for("Stop and quit?", "capturing tiny_asked: saved shards are kept")
    shell.press("y")
    text = shell.wait_for("ended with 0")
    assert "stopped capturing tiny_asked; its shards are kept: to resume, submit the same form" in " ".join(
        text.split()
    )
    assert len([*shards.glob("*.safetensors")]) < 9


def test_the_program_does_not_wait_for_a_job_that_does_not_see_its_cancel(store: Path) -> None:
    script = """
import asyncio, threading
from pathlib import Path
from tui.app import LayerscopeApp

app = LayerscopeApp(Path("activations"))

async def leave():
    async with app.run_test() as pilot:
        started = threading.Event()
        app.jobs.start("loading a huge model", lambda job: (started.set(), threading.Event().wait()), app)
        while not started.is_set():
            await pilot.pause(0.1)

asyncio.run(leave())
print([(job.title, job.stopping) for job in app.left], app.jobs.join(0.1))
"""
    result = Program(store.parent).python("-c", script, PYTHONPATH=str(Path.cwd()))
    assert result.stdout.strip() == "[('loading a huge model', True)] False", result.stderr


def test_garbage_collection_starts_after_the_app(real_store: Path) -> None:
    script = """
import asyncio, gc
from pathlib import Path
from tui.app import LayerscopeApp

async def look():
    gc.disable()  # as the command does
    async with LayerscopeApp(Path("activations")).run_test() as pilot:
        while not gc.isenabled():
            await pilot.pause(0.1)

asyncio.run(asyncio.wait_for(look(), 60))
"""
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    subprocess.run([sys.executable, "-c", script], cwd=real_store.parent, env=environment, check=True)


def test_signs_replace_colors_without_color(terminal: Callable[..., Terminal]) -> None:
    shell = terminal("activations/tiny_warm.pt", NO_COLOR="1")
    text = shell.wait_for("Held-out projections at layer", "●")
    assert re.search("━+●", text)
    shell.press("t")
    shell.wait_for("token 1 'w30' at layer", "╋")
    # NO_COLOR forbids colors; Textual still uses shades of gray.
    colours = re.findall(r"38;2;(\d+);(\d+);(\d+)|48;2;(\d+);(\d+);(\d+)", shell.text("-e"))
    assert all(len({part for part in colour if part}) <= 1 for colour in colours)


def test_an_unknown_theme_lists_the_known_ones(terminal: Callable[..., Terminal]) -> None:
    shell = terminal("--theme", "none-such")
    text = shell.wait_for("there is no theme 'none-such'", "ended with 2")
    assert "layerscope-dark" in text
