"""Say how a requested capture differs from the unfinished one, and which settings resume it."""

from __future__ import annotations

from typing import Any

from engine.records.files import ShardPlan
from engine.remedies import Advice, Remedy, Setting
from engine.store.names import CapturePaths

_HASHES = {
    "prompts.texts": "the texts of the prompts",
    "prompts.ids": "the tokens of the prompts",
    "prompts.factors": "the factors of the pairs",
    "weights": "the weights of the model",
    "provenance.adapters": "the adapters of the model",
    "provenance.configuration": "the configuration of the model",
    "provenance.chat_template": "the chat template",
}
# The prompt file may have been moved or renamed. Both modes give the same states. Measurements of the load check may
# differ in the last digits, and the settings derived from them are in the provenance. A template time that matters
# changes the texts, which are hashed. The weights also have a separate field outside the provenance.
_MAY_DIFFER = {"prompts.file", "provenance.mode", "provenance.template_time", "provenance.weights"}
_MEASURED = "provenance.receipt."
_NEW = {"provenance.configuration"}  # absent from plans of older versions
_ABSENT = {"provenance.compiled": "off"}  # what the absence of a value means, if not None

_RESPONSES = "provenance.responses."
_NAMES = {
    f"{_RESPONSES}origin": "the source of responses",
    f"{_RESPONSES}max_new_tokens": "the maximum number of tokens of a response",
    f"{_RESPONSES}sampled": "sampling of responses",
    f"{_RESPONSES}seed": "the seed for sampling responses",
    f"{_RESPONSES}settings": "the model's generation settings",
    "provenance.seed": "the seed for sampling pairs",
    "prompts.count": "the number of prompts",
}
_VALUES = {"generated": "the model", "given": "the prompts", "": "none"}

# What follows from other settings, and is only named if nothing else differs.
_DERIVED = {"prompts.ids", "prompts.tokens", "prompts.kept", "prompts.kept_in_all", "shard_prompts"}
_OF_SAMPLE = {"prompts.texts", "prompts.factors"}  # of a concept: they follow from the number of pairs and the seed

# Settings of a capture request by their place in the plan.
_SETTINGS = {
    f"{_RESPONSES}max_new_tokens": "respond",
    f"{_RESPONSES}sampled": "sample",
    f"{_RESPONSES}seed": "seed",
    "provenance.seed": "seed",
    "layers": "layers",
    "provenance.site": "site",
    "provenance.positions": "positions",
    "provenance.batch_size": "batch_size",
    "store_dtype": "store_dtype",
}


def plan_changes(saved: ShardPlan, wanted: ShardPlan) -> list[str]:
    """Describe how two plans differ; empty if their captures are bit-identical.

    Args:
        saved: The saved plan.
        wanted: The plan of the current request.
    """
    old, new = _flat(saved), _flat(wanted)
    return [
        f"{_HASHES[name]} changed"
        if name in _HASHES
        else f"{_said(name)} was {_value(old, name)}, is now {_value(new, name)}"
        for name in _changed(old, new)
    ]


def resume_advice(saved: ShardPlan, wanted: ShardPlan, paths: CapturePaths) -> Advice:
    """What to do about a plan that differs: resume with the saved settings, or do not resume.

    Args:
        saved: The saved plan.
        wanted: The plan of the current request.
        paths: Files of the capture.
    """
    old, new = _flat(saved), _flat(wanted)
    settings = {_SETTINGS[name]: _setting(old, name) for name in _changed(old, new) if name in _SETTINGS}
    if old["prompts.count"] != new["prompts.count"] and saved["concept"] is not None:
        settings["max_samples"] = old["prompts.count"] // 2
    sampled = bool(old.get(f"{_RESPONSES}sampled"))
    if sampled != bool(new.get(f"{_RESPONSES}sampled")):
        settings["sample"] = sampled
    if sampled and "sample" in settings:
        settings["seed"] = old[f"{_RESPONSES}seed"]
    if not settings:
        return paths.advice(Remedy.RENAME_OR_REPLACE)
    return Advice(Remedy.RESUME_AS_STARTED, settings=tuple(settings.items()))


def _changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Places in which two plans differ, without those that follow from others."""
    changed = [
        name
        for name in dict.fromkeys([*old, *new])
        if _known_by(name, old.get(name)) != _known_by(name, new.get(name))
        if name not in _MAY_DIFFER and not name.startswith(_MEASURED)
        if name not in _NEW or name in old
    ]
    sources = [name for name in changed if name not in _DERIVED]
    if old["concept"] is not None and {"prompts.count", "provenance.seed"} & {*sources}:
        sources = [name for name in sources if name not in _OF_SAMPLE]
    if f"{_RESPONSES}sampled" in sources:  # without sampling, there is no seed and no temperature
        sources = [name for name in sources if name not in {f"{_RESPONSES}seed", f"{_RESPONSES}settings"}]
    if f"{_RESPONSES}origin" in sources:
        kept = {f"{_RESPONSES}origin", f"{_RESPONSES}max_new_tokens"}
        sources = [name for name in sources if not name.startswith(_RESPONSES) or name in kept]
    return sources or changed


def _known_by(name: str, value: Any) -> Any:  # noqa: ANN401 - what JSON can hold
    """The part of a value to compare.

    Of a device only the type is compared, because each process of a capture has its own GPU. The reason why blocks are
    not compiled makes no difference.
    """
    if name == "provenance.compiled":
        return value == "on"
    return str(value).partition(":")[0] if name == "provenance.device" else value


def _said(name: str) -> str:
    return _NAMES.get(name, name.removeprefix("provenance.").replace(".", " ").replace("_", " "))


def _value(plan: dict[str, Any], name: str) -> str:
    value = plan.get(name, _ABSENT.get(name))
    if value is None or isinstance(value, bool):
        return {True: "on", False: "off", None: "none"}[value]
    return _VALUES.get(value, value) if isinstance(value, str) else str(value)


def _setting(plan: dict[str, Any], name: str) -> Setting:
    """The saved value of a setting, as a request has it."""
    value: Setting = plan.get(name)
    return None if name == "store_dtype" and value == "as captured" else value


def _flat(value: Any, name: str = "") -> dict[str, Any]:  # noqa: ANN401 - walks what JSON can hold
    if not isinstance(value, dict):
        return {name: value}
    return {
        inner: leaf
        for key, below in value.items()
        for inner, leaf in _flat(below, f"{name}.{key}" if name else key).items()
    }
