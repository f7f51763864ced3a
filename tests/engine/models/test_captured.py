"""Finding the model of a capture among models that share an alias or an id."""

from dataclasses import replace
from typing import cast

import pytest

from engine.errors import RequestError
from engine.models.captured import find_captured_model, require_captured_model
from engine.models.registry import find_source
from engine.records.captures import Provenance
from engine.records.models import Adapter, ModelSource
from tests.conftest import Trained

ADVICE = "name it"
LORA = Adapter(name="a", kind="LORA", rank=2, scales=[1.0], active=True, merged=False, weights="1234")


def hub(alias: str, model_id: str, adapter: str | None = None) -> ModelSource:
    return ModelSource(alias, model_id, "hub", model_id, adapter=adapter)


def captured(alias: str, model_id: str, **more: object) -> Provenance:
    """The part of a provenance that does not need a model."""
    return cast("Provenance", {"alias": alias, "model": model_id, "receipt": {"dtype": "float32"}, **more})


def test_of_two_hub_ids_with_one_alias_the_id_decides() -> None:
    sources = {name: hub("small-1b", name) for name in ("one/Small-1B", "other/Small-1B")}
    for name in sources:
        assert find_captured_model(captured("small-1b", name), sources, advice=ADVICE) == name
    with pytest.raises(RequestError, match=r"the model of this capture, third/Small-1B, has no alias .* Next: name it"):
        find_captured_model(captured("small-1b", "third/Small-1B"), sources, advice=ADVICE)


def test_an_alias_of_another_model_is_not_used() -> None:
    sources = {"mine": hub("mine", "owner/new"), "old": hub("old", "owner/old")}
    assert find_captured_model(captured("mine", "owner/old"), sources, advice=ADVICE) == "old"
    del sources["old"]
    with pytest.raises(RequestError, match="owner/old, has no alias on this machine; 'mine' is another model"):
        find_captured_model(captured("mine", "owner/old"), sources, advice=ADVICE)


def test_a_base_model_does_not_replace_its_adapter() -> None:
    base, tuned = hub("base", "owner/base"), hub("tuned", "owner/base", adapter="/tuned")
    with_adapter = captured("mine", "owner/base", adapters=[LORA])
    assert find_captured_model(with_adapter, {"base": base, "tuned": tuned}, advice=ADVICE) == "tuned"
    assert find_captured_model(captured("x", "owner/base"), {"base": base, "tuned": tuned}, advice=ADVICE) == "base"
    with pytest.raises(RequestError, match="has no alias"):
        find_captured_model(with_adapter, {"base": base}, advice=ADVICE)


def test_of_two_folders_with_one_name_the_weights_decide(trained: list[Trained]) -> None:
    sources = {str(one.folder): find_source(one.folder) for one in trained}
    loaded = {str(one.folder): one.config for one in trained}
    first, second = sources
    for one in trained:
        assert one.data["provenance"]["alias"] == "checkpoint-500"
        assert find_captured_model(one.data["provenance"], sources, loaded, advice=ADVICE) == str(one.folder)
    of_first = trained[0].data["provenance"]
    only_other = {second: loaded[second]}
    assert find_captured_model(of_first, sources, only_other, advice=ADVICE) == first  # the one that may be it
    with pytest.raises(RequestError, match=f"may be any of {first}, {second}. Expected: one model of that name"):
        find_captured_model(of_first, sources, advice=ADVICE)
    with pytest.raises(RequestError, match="checkpoint-500, has no alias"):
        find_captured_model(of_first, {second: sources[second]}, only_other, advice=ADVICE)


def test_a_loaded_model_must_compute_as_that_of_the_capture(trained: list[Trained]) -> None:
    provenance = trained[0].data["provenance"]
    require_captured_model(trained[0].config, provenance, advice=ADVICE)
    other = trained[1].config
    with pytest.raises(RequestError, match="checkpoint-500 is not the model of this capture: its weights differ"):
        require_captured_model(other, provenance, advice=ADVICE)
    with pytest.raises(RequestError, match="its adapters differ"):
        require_captured_model(trained[0].config, provenance | {"adapters": [LORA]}, advice=ADVICE)
    with pytest.raises(RequestError, match="its configuration differs"):
        require_captured_model(replace(trained[0].config, configuration="rotary"), provenance, advice=ADVICE)


def test_the_weights_of_a_renamed_folder_decide(trained: list[Trained]) -> None:
    """And its name, where they cannot be compared."""
    provenance, config = trained[0].data["provenance"], trained[0].config
    renamed = replace(config, source=replace(config.source, model_id="other", alias="checkpoint-500"))
    assert find_captured_model(provenance, {"checkpoint-500": renamed.source}, advice=ADVICE) == "checkpoint-500"
    require_captured_model(renamed, provenance, advice=ADVICE)
    without = cast("Provenance", {key: value for key, value in provenance.items() if key != "weights"})
    with pytest.raises(RequestError, match="its id is other, not checkpoint-500"):
        require_captured_model(renamed, without, advice=ADVICE)


def test_a_model_that_was_loaded_by_its_path_is_found_under_an_alias() -> None:
    """As transformers loads it: the path is its id."""
    provenance = captured("m1", "/models/m1", source="given")
    for alias in ("m1", "first"):
        source = ModelSource(alias, "m1", "folder", "/models/m1")
        assert find_captured_model(provenance, {alias: source}, advice=ADVICE) == alias


def test_the_same_id_with_weights_of_another_kind_is_another_model() -> None:
    """As in a package that holds the model in lower precision."""
    package = ModelSource("smollm2", "owner/SmolLM2", "package", "/site/packages/smollm2")
    with pytest.raises(RequestError, match="has no alias"):
        find_captured_model(
            captured("smollm2-135m", "owner/SmolLM2", source="hub"), {"smollm2": package}, advice=ADVICE
        )


def test_the_owner_tells_models_on_the_hub_apart_where_weights_cannot_be_compared(trained: list[Trained]) -> None:
    config, bfloat16 = trained[0].config, {**trained[0].config.receipt, "dtype": "bfloat16"}
    of_path = captured("small-1b", "/models/Small-1B/", source="given", receipt=bfloat16)
    require_captured_model(
        replace(config, source=ModelSource("small-1b", "Small-1B", "folder", "/models/Small-1B")),
        of_path,
        advice=ADVICE,
    )
    other = replace(config, source=hub("small-1b", "other/Small-1B"))
    with pytest.raises(RequestError, match="its id is other/Small-1B, not one/Small-1B"):
        require_captured_model(other, of_path | {"model": "one/Small-1B"}, advice=ADVICE)


def test_two_aliases_of_one_folder_are_one_model() -> None:
    sources = {alias: ModelSource(alias, "m1", "folder", "/models/m1") for alias in ("a", "b")}
    assert find_captured_model(captured("c", "m1", source="folder"), sources, advice=ADVICE) == "a"


def test_weights_that_cannot_be_compared_are_no_reason_to_refuse(trained: list[Trained]) -> None:
    """Without a fingerprint, in another dtype, or edited in memory: then the reader warns."""
    provenance, other = trained[0].data["provenance"], trained[1].config
    half = replace(other, receipt={**other.receipt, "dtype": "bfloat16"})
    require_captured_model(half, provenance, advice=ADVICE)
    require_captured_model(other, provenance | {"altered": ["edited"]}, advice=ADVICE)
    without = cast("Provenance", {key: value for key, value in provenance.items() if key != "weights"})
    require_captured_model(other, without, advice=ADVICE)
