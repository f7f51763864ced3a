"""A damaged plan is refused, and never taken for another one."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.errors import StoreError
from engine.store.plan import read_plan


@pytest.mark.parametrize(
    "damage", [{"compiled": "maybe"}, {"compiled": "only"}, {"compiled": True}, {"token_budget": 0}, {"device": None}]
)
@pytest.mark.parametrize("compiled", [False, None, True])
def test_damaged_settings_are_refused(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    damage: dict[str, Any],
    compiled: bool | None,
) -> None:
    def stop(done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    def capture(**how: Any) -> None:
        how |= {"store": tmp_path / "store", "compiled": compiled}
        engine.capture_prompt_file(tiny_llama, tiny_tokenizer, tmp_path / "prompts.txt", "mine", **how)

    (tmp_path / "prompts.txt").write_text("w5 w6\nw7 w8")
    with pytest.raises(KeyboardInterrupt):
        capture(progress=stop)
    plan = tmp_path / "store" / "mine" / "plan.json"
    content = json.loads(plan.read_bytes())
    content["provenance"] |= damage
    plan.write_text(json.dumps(content))
    (field,) = damage
    with pytest.raises(StoreError, match=rf"plan\.json is damaged: .*\$\.provenance\.{field}") as caught:
        capture()
    assert "--force" in caught.value.said("command_line")


@pytest.mark.parametrize("compiled", ["on", "off", "no: it has layers of type\nindexed_attention"])
def test_every_way_to_run_is_read(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, compiled: str
) -> None:
    (tmp_path / "prompts.txt").write_text("w5 w6\nw7 w8")
    engine.capture_prompt_file(tiny_llama, tiny_tokenizer, tmp_path / "prompts.txt", "mine", store=tmp_path / "store")
    plan = tmp_path / "store" / "mine" / "plan.json"
    content = json.loads(plan.read_bytes())
    content["provenance"]["compiled"] = compiled
    plan.write_text(json.dumps(content))
    assert read_plan(plan)["provenance"].get("compiled") == compiled
