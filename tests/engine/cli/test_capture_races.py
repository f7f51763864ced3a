"""Two `layerscope capture --shards` of one name, started at the same time: one saves, the other is told."""

import json
from pathlib import Path

import pytest

from tests.engine.cli.test_capture_file import write_prompts
from tests.program import Program

ROUNDS = 4


@pytest.mark.slow
@pytest.mark.parametrize("source", ["--pairs", "--prompts"])
def test_of_two_captures_under_one_name_exactly_one_succeeds(
    layerscope: Program, tiny_folder: Path, source: str
) -> None:
    pairs = [{"positive": f"w5 w{20 + i}", "negative": f"w6 w{20 + i}"} for i in range(9)]
    (layerscope.folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    write_prompts(layerscope.folder / "many.txt", 1100)
    file = {"--pairs": "pairs.jsonl", "--prompts": "many.txt"}[source]
    command = ("capture", "--model", str(tiny_folder), source, file, "--shards", "--quiet", "--output")
    assert layerscope(*command, "alone/mine").returncode == 0
    alone = shards(layerscope.folder / "alone")
    for number in range(ROUNDS):
        store = layerscope.folder / f"round{number}"
        racing = (*command, f"{store.name}/mine")
        with layerscope.started(*racing) as first, layerscope.started(*racing) as second:
            said = [process.communicate(timeout=300)[1] for process in (first, second)]
        codes = [first.returncode, second.returncode]
        assert sorted(codes) == [0, 5], said
        refusal = said[codes.index(5)]
        assert "another process is capturing 'mine' now" in refusal or "already a capture called mine" in refusal
        assert "Traceback" not in "".join(said)
        assert shards(store) == alone
        assert sorted(path.name for path in store.iterdir()) == ["mine", "mine.json"]
        assert layerscope("verify", "--store", str(store)).returncode == 0


def shards(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / "mine").glob("*.safetensors")}
