"""Load a causal language model and its tokenizer, checked and ready for capture."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from transformers.utils.peft_utils import find_adapter_config_file

from engine.errors import ModelError
from engine.models.adapters import adapter_base, load_adapter
from engine.models.description import examine_model
from engine.models.devices import choose_device, choose_places, natural_dtype, parse_dtype, require_room, running_device
from engine.models.files import require_own_files, require_sane_config
from engine.models.load_errors import readable_load_errors, require_cache_folder
from engine.models.offload import keep_while, offload_folder, quiet_accelerate, where_layers_lie
from engine.models.placement import MaxMemory
from engine.models.registry import DEFAULT_MODEL, find_source
from engine.models.sources import convert, require_on_hub
from engine.records.models import ModelConfig, ModelSource
from engine.remedies import Remedy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_ADAPTER_FILES = "matching adapter_config.json and adapter_model.safetensors, trained on this base model"


def load_model_and_tokenizer(
    model: str | Path = DEFAULT_MODEL,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    *,
    device_map: str | dict[str, Any] | None = None,
    max_memory: MaxMemory | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, ModelConfig]:
    """Load a model and its tokenizer, and check the model.

    Args:
        model: An alias, a hub id, a folder written by `save_pretrained`, or a `.gguf` file. A peft adapter folder
            loads its base model with the adapter on it.
        device: "auto" (CUDA, then Apple's GPU, then the CPU; under a launcher the GPU with this process's local rank),
            or a torch device name ("cuda:1").
        dtype: "auto" (the checkpoint's own if the device computes in it, else float32), a name or a torch dtype.
        device_map: Alternative to a device: "auto" lets accelerate fill the GPUs, then main memory, then disk, from
            which weights are read in each forward pass; or a dictionary from module names to devices.
        max_memory: Maximum bytes of weights per device of the device map, such as `{0: "20GB", "cpu": "100GB"}`. By
            default all free memory.
        trust_remote_code: Run code that comes with the model. Leave it off unless you trust the author.

    Returns:
        The model in eval mode, its tokenizer, and a description of the model.

    Raises:
        RequestError: The model, device, dtype, device map or memory limit is not valid here.
        ModelError: The model cannot be found, read or fitted into memory, is not a causal language model, fails the
            check, or its files reach outside their folder or ask for code.

    Example:
        >>> model, tokenizer, config = load_model_and_tokenizer("smollm2")
        >>> config.num_layers, config.hidden_size
        (30, 576)
    """
    require_cache_folder()
    source = find_source(model)
    places = choose_places(device, device_map, max_memory)
    torch_device = running_device(places) if places else choose_device(device)
    wanted_dtype = parse_dtype(dtype)
    if not source.local:
        require_on_hub(source)
        log.info("downloading %s", source.model_id)
    with _progress_bars(shown=not source.local), readable_load_errors(source.model_id, source.location):
        location = str(convert(source)) if source.gguf_file else source.location
    with _progress_bars(shown=not source.local), readable_load_errors(source.model_id, location):
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if source.kind == "hub":
            options["revision"] = source.revision
            if adapter := find_adapter_config_file(location, revision=source.revision):  # a hub adapter
                adapter_base(Path(adapter).parent)
        require_sane_files(source, location, trusted=trust_remote_code)
        config = transformers.AutoConfig.from_pretrained(location, **options)
        _require_causal_lm(config, source)
        chosen_dtype = wanted_dtype or natural_dtype(config.dtype, torch_device)
        if not places:
            require_room(config, chosen_dtype, torch_device)
        with ThreadPoolExecutor(max_workers=1) as pool:  # load the tokenizer and the weights in parallel
            read = transformers.AutoTokenizer.from_pretrained
            future = pool.submit(read, _tokenizer_location(source, location), **options)
            loaded, found = _from_pretrained(
                location,
                places,
                config=config,
                dtype=chosen_dtype,
                ignore_mismatched_sizes=True,  # reported below with the missing tensors
                **options,
            )
            tokenizer = future.result()
        if source.adapter is not None:
            with readable_load_errors(f"the adapter {Path(source.adapter).name}", source.adapter, _ADAPTER_FILES):
                load_adapter(loaded, Path(source.adapter))
        _require_whole(found, source, location)
        if not places:
            loaded.to(torch_device)  # type: ignore[arg-type]  # transformers wraps it and loses its type
        loaded.eval()
    commit = getattr(loaded.config, "_commit_hash", None)  # the commit behind a branch or tag
    contents = Path(location).name if source.kind == "gguf" else None  # the folder is named after the file's hash
    source = replace(source, revision=commit or source.revision or contents)
    description = examine_model(loaded, source).config
    if spread := where_layers_lie(loaded, description.receipt["blocks"]):
        log.info("%s", spread)
    return loaded, tokenizer, description


def require_sane_files(source: ModelSource, location: str, *, trusted: bool) -> None:
    """Refuse files that reach elsewhere, ask for code or describe an absurd size, before they are read.

    Args:
        source: The model.
        location: The folder or hub id that it loads from.
        trusted: Whether code that comes with the model may run.

    Raises:
        ModelError: They do.
    """
    if source.kind == "hub":
        found = try_to_load_from_cache(location, "config.json", revision=source.revision)
        folders = [Path(found).parent] if isinstance(found, str) else []  # nothing is here yet before a download
    else:
        folders = [Path(location)]
    for folder in [*folders, *([Path(source.adapter)] if source.adapter is not None else [])]:
        require_own_files(folder)
    options = {"revision": source.revision} if source.kind == "hub" else {}
    config, _ = transformers.PreTrainedConfig.get_config_dict(location, **options)
    require_sane_config(config, f"the config of {source.model_id}", trusted=trusted)


def _tokenizer_location(source: ModelSource, location: str) -> str:
    """Return where to load the tokenizer from.

    An adapter's own tokenizer takes precedence, since training may have added tokens.
    """
    own = source.adapter is not None and (Path(source.adapter) / "tokenizer_config.json").is_file()
    return str(source.adapter) if own else location


def _from_pretrained(
    location: str, places: dict[str, Any], **options: object
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the model, and transformers' report on missing and mismatched tensors."""
    if not places:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(location, output_loading_info=True, **options)
        return loaded[0], loaded[1]
    with offload_folder() as folder, quiet_accelerate():
        options |= places | {"offload_folder": str(folder)}
        loaded = transformers.AutoModelForCausalLM.from_pretrained(location, output_loading_info=True, **options)
        keep_while(loaded[0], folder)
    return loaded[0], loaded[1]


def _require_causal_lm(config: transformers.PreTrainedConfig, source: ModelSource) -> None:
    """Refuse a masked or sequence-to-sequence model by its checkpoint's class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    classes = set(getattr(config, "architectures", None) or [])
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not getattr(config, "auto_map", None):
        classes = classes or {config.model_type}
    elif not classes or classes & known or getattr(config, "auto_map", None):
        return
    raise ModelError(
        f"{source.model_id} is not a causal language model: its class is {', '.join(sorted(classes))}",
        expected="a decoder that predicts the next token",
        next_step=Remedy.LIST_MODELS,
    )


def _require_whole(found: dict[str, Any], source: ModelSource, location: str) -> None:
    """Refuse missing or mismatched tensors, which transformers would randomize."""
    invented = sorted(found["missing_keys"]) + sorted(str(entry[0]) for entry in found["mismatched_keys"])
    if invented:
        more = f" and {len(invented) - 3} more" if len(invented) > 3 else ""
        raise ModelError(
            f"the weights of {source.model_id} in {location} lack {', '.join(invented[:3])}{more},"
            " or their shapes do not match the config",
            expected="every tensor of the model",
            next_step="download the files again",
        )


@contextmanager
def _progress_bars(*, shown: bool) -> Iterator[None]:
    """Show progress bars for a download; for a load of 0.3 seconds they are noise."""
    if shown or not transformers.utils.logging.is_progress_bar_enabled():
        yield
        return
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.utils.logging.enable_progress_bar()
