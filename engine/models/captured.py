"""Find the model that a capture was made with. An alias alone does not identify it. Imports no torch."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version

from engine.errors import RequestError
from engine.models.registry import find_source, list_models
from engine.records.captures import Provenance
from engine.records.models import Adapter, ModelConfig, ModelSource

_LOCAL = frozenset({"folder", "gguf", "given"})


def find_captured_model(
    provenance: Provenance,
    sources: Mapping[str, ModelSource],
    loaded: Mapping[str, ModelConfig] | None = None,
    *,
    where: str = "on this machine",
    advice: str,
) -> str:
    """Find the name that loads the model of a capture.

    Folders and hub ids that end alike share an alias, and an alias can be given to another model later. So the model
    id counts too, and a loaded model must compute the same. Check the model once it is loaded, with
    `require_captured_model`.

    Args:
        provenance: Provenance of the capture, or of directions.
        sources: Name to source of the models that may be loaded.
        loaded: Name to description of those that are loaded, or were.
        where: Where these names are known, for the error message.
        advice: What to do if the model is not found.

    Raises:
        RequestError: None of the models can be that of the capture, or several can.
    """
    known = {name: _difference(config, provenance) for name, config in (loaded or {}).items()}
    fits = {name: fit for name, source in sources.items() if (fit := _fit(source, provenance)) and not known.get(name)}
    same = [name for name in fits if known.get(name) == ""]
    chosen = same[:1] or [name for name, fit in fits.items() if fit == max(fits.values())]
    if len({replace(sources[name], alias="").key for name in chosen}) > 1:
        raise RequestError(
            f"the model of this capture, {provenance['model']}, may be any of {', '.join(chosen)}",
            expected="one model of that name",
            next_step=advice,
        )
    if chosen:
        return chosen[0]
    taken = any(source.alias == provenance["alias"] for source in sources.values())
    now = f"; {provenance['alias']!r} is another model" if taken else ""
    raise RequestError(f"the model of this capture, {provenance['model']}, has no alias {where}{now}", next_step=advice)


def require_captured_model(config: ModelConfig, provenance: Provenance, *, advice: str) -> None:
    """Refuse a loaded model that is not the one that a capture was made with.

    Weights, configuration and adapters are compared if both were read in the same dtype. Those of a model that was
    changed in memory are on no disk: what uses them warns of the difference.

    Args:
        config: Description of the loaded model.
        provenance: Provenance of the capture, or of directions.
        advice: What to do then.

    Raises:
        RequestError: Its id, weights, configuration or adapters differ from those of the capture.
    """
    source, difference = config.source, _difference(config, provenance)
    if difference == "" or (difference is None and _same_name(source, provenance)):
        return
    problem = difference or f"its id is {source.model_id}, not {provenance['model']}"
    raise RequestError(f"{source.location} is not the model of this capture: {problem}", next_step=advice)


def named_sources(provenance: Provenance) -> dict[str, ModelSource]:
    """Name to source of the models on this machine: every alias, and that of the capture if it is a path.

    Raises:
        ModelError: The alias of the capture leads to a path without a usable model.
    """
    sources = {listing.alias: listing.source for listing in list_models()}
    with suppress(RequestError):
        sources[provenance["alias"]] = find_source(provenance["alias"])
    return sources


def _fit(source: ModelSource, provenance: Provenance) -> int:
    """How well a source fits the model of a capture: 3 by id and alias, 2 by id, 1 by alias, 0 if it cannot be it.

    A folder may have been renamed since, or registered after a capture by its path: its alias suffices, because the
    weights decide once it is loaded. Ids on the hub tell models apart. A base model and its adapters have the same id,
    and so have weights in a package or on the hub that differ in precision.
    """
    same_alias, kind = source.alias == provenance["alias"], provenance.get("source")
    if provenance["model"] in (source.model_id, source.location):
        if same_alias:
            return 3
        adapted = (source.adapter is not None) == bool(provenance.get("adapters"))
        return 2 if adapted and kind in (source.kind, "given", None) else 0
    return 1 if same_alias and not _LOCAL.isdisjoint((source.kind, kind)) else 0


def _same_name(source: ModelSource, provenance: Provenance) -> bool:
    """Whether a source has the id that a capture recorded; the name of a folder or file is the last part of a path."""
    recorded = provenance["model"]
    if "/" not in source.model_id:
        recorded = recorded.rstrip("/").rpartition("/")[2]
    return source.model_id.lower() == recorded.lower()


def _difference(config: ModelConfig, provenance: Provenance) -> str | None:
    """How a loaded model differs from that of a capture; empty if it does not, None if they cannot be compared.

    As in `model_differences`, a configuration is compared if the same version of transformers read it.
    """
    same_dtype = config.receipt["dtype"] == provenance["receipt"]["dtype"]
    if "weights" not in provenance or not config.weights or not same_dtype or provenance.get("altered"):
        return None
    if config.weights != provenance["weights"]:
        return "its weights differ"
    if _acting(config.adapters) != _acting(provenance.get("adapters", [])):
        return "its adapters differ"
    same_reader = provenance["versions"].get("transformers") == version("transformers")
    if same_reader and config.configuration != provenance.get("configuration", config.configuration):
        return "its configuration differs"
    return ""


def _acting(adapters: Sequence[Adapter]) -> list[str]:
    return sorted(adapter["weights"] for adapter in adapters if adapter["active"] or adapter["merged"])
