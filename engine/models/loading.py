"""Load a causal language model with its tokenizer, checked and ready to be captured.

Knows what transformers needs to be told. Does not know where names lead (`engine.models.registry`), where a model goes
(`engine.models.devices`), in which dtype (`engine.models.devices`) or what makes it fit to be captured
(`engine.models.check`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.peft_utils import find_adapter_config_file

from engine.errors import ModelError, Remedy
from engine.models.adapters import adapter_base, load_adapter
from engine.models.description import examine_model
from engine.models.devices import choose_device, choose_places, natural_dtype, parse_dtype, require_room, running_device
from engine.models.load_errors import readable_load_errors
from engine.models.offload import keep_while, offload_folder, quiet_accelerate, where_layers_lie
from engine.models.placement import MaxMemory
from engine.models.registry import DEFAULT_MODEL, find_source
from engine.models.sources import convert, require_on_hub
from engine.records.models import ModelConfig, ModelSource

log = logging.getLogger(__name__)

_ADAPTER_FILES = "adapter_config.json and adapter_model.safetensors that belong together, for this base model"


def load_model_and_tokenizer(
    model: str | Path = DEFAULT_MODEL,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    *,
    device_map: str | dict[str, Any] | None = None,
    max_memory: MaxMemory | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, ModelConfig]:
    """Load a model and check that it keeps the promises a capture relies on.

    Args:
        model: An alias, a hub id, a folder that `save_pretrained` wrote, or a `.gguf` file. The folder of an adapter of
            peft stands for its base model with the adapter on it.
        device: "auto" (CUDA, then Apple's GPU, then the CPU; of several GPUs that of this process's number under a
            launcher), or a name that torch knows ("cuda:1").
        dtype: "auto" (the checkpoint's own where the device computes in it, else float32), a name or a torch dtype.
        device_map: Instead of a device: "auto" lets accelerate lay the weights on the GPUs, then into main memory, then
            on the disk, from where they are read in each pass; or a dictionary of parts of the model and their places.
        max_memory: With a device map, most bytes of weights for each place that may be used, as in
            `{0: "20GB", "cpu": "100GB"}`; what is free unless given.
        trust_remote_code: Run code that comes with the model. Off unless you trust its author.

    Returns:
        The model in eval mode, its tokenizer, and what is known of the model.

    Raises:
        RequestError: The model, device, dtype, device map or memory has no meaning here.
        ModelError: It cannot be found, read, or fitted into memory, is no causal language model, or fails the check.

    Example:
        >>> model, tokenizer, config = load_model_and_tokenizer("smollm2")
        >>> config.num_layers, config.hidden_size
        (30, 576)
    """
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
            if adapter := find_adapter_config_file(location, revision=source.revision):  # a repository may hold one too
                adapter_base(Path(adapter).parent)
        config = AutoConfig.from_pretrained(location, **options)
        _require_causal_lm(config, source)
        chosen_dtype = wanted_dtype or natural_dtype(config.dtype, torch_device)
        if not places:
            require_room(config, chosen_dtype, torch_device)
        with ThreadPoolExecutor(max_workers=1) as beside:  # the tokenizer is read while the weights are
            reading = beside.submit(AutoTokenizer.from_pretrained, _tokenizer_location(source, location), **options)
            loaded, found = _from_pretrained(
                location,
                places,
                config=config,
                dtype=chosen_dtype,
                ignore_mismatched_sizes=True,  # reported with the missing ones, below
                **options,
            )
            tokenizer = reading.result()
        if source.adapter is not None:
            with readable_load_errors(f"the adapter {Path(source.adapter).name}", source.adapter, _ADAPTER_FILES):
                load_adapter(loaded, Path(source.adapter))
        _require_whole(found, source, location)
        if not places:
            loaded.to(torch_device)  # type: ignore[arg-type]  # transformers wraps it and loses its type
        loaded.eval()
    commit = getattr(loaded.config, "_commit_hash", None)  # what a branch or tag stood for
    contents = Path(location).name if source.kind == "gguf" else None  # a folder called by the hash of the file
    source = replace(source, revision=commit or source.revision or contents)
    description = examine_model(loaded, source).config
    if spread := where_layers_lie(loaded, description.receipt["blocks"]):
        log.info("%s", spread)
    return loaded, tokenizer, description


def _tokenizer_location(source: ModelSource, location: str) -> str:
    """An adapter may bring a tokenizer of its own, with tokens that it was trained with."""
    own = source.adapter is not None and (Path(source.adapter) / "tokenizer_config.json").is_file()
    return str(source.adapter) if own else location


def _from_pretrained(
    location: str, places: dict[str, Any], **options: object
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and what transformers says of tensors that it missed."""
    if not places:
        loaded: Any = AutoModelForCausalLM.from_pretrained(location, output_loading_info=True, **options)
        return loaded[0], loaded[1]
    with offload_folder() as folder, quiet_accelerate():
        options |= places | {"offload_folder": str(folder)}
        loaded = AutoModelForCausalLM.from_pretrained(location, output_loading_info=True, **options)
        keep_while(loaded[0], folder)
    return loaded[0], loaded[1]


def _require_causal_lm(config: transformers.PreTrainedConfig, source: ModelSource) -> None:
    """A checkpoint names the class it was saved from: a masked or sequence-to-sequence model is refused by it."""
    classes = set(getattr(config, "architectures", None) or [])
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not getattr(config, "auto_map", None):
        classes = classes or {config.model_type}
    elif not classes or classes & known or getattr(config, "auto_map", None):
        return
    raise ModelError(
        f"{source.model_id} is not a causal language model but {', '.join(sorted(classes))}",
        expected="a decoder that predicts the next token",
        next_step=Remedy.LIST_MODELS,
    )


def _require_whole(found: dict[str, Any], source: ModelSource, location: str) -> None:
    """Refuse what transformers fills with random values: tensors it does not find, or finds in another shape."""
    invented = sorted(found["missing_keys"]) + sorted(str(entry[0]) for entry in found["mismatched_keys"])
    if invented:
        more = f" and {len(invented) - 3} more" if len(invented) > 3 else ""
        raise ModelError(
            f"the weights of {source.model_id} in {location} lack {', '.join(invented[:3])}{more},"
            " or hold them in another shape than the config says",
            expected="every tensor of the model",
            next_step="fetch the files again",
        )


@contextmanager
def _progress_bars(*, shown: bool) -> Iterator[None]:
    """Bars for a download; for a load of a third of a second they are noise."""
    if shown or not transformers.utils.logging.is_progress_bar_enabled():
        yield
        return
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.utils.logging.enable_progress_bar()
