"""Adapters of peft on a model: which are active, and the folders that hold one.

LoRA and its relatives change what the blocks compute, and a capture reads the result. The record says which adapters
these were. Prompt and prefix tuning put virtual tokens in front of the prompt, which a capture of the decoder does not
run: such a model is refused.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from engine.errors import ModelError
from engine.records.models import Adapter

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"
_WITH_VIRTUAL_TOKENS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE")
_OUTSIDE_THE_BLOCKS = ("XLORA", "POLY")


def adapter_base(folder: Path) -> tuple[str, str | None]:
    """The base model that the folder of an adapter names, and its revision, if the adapter can be loaded here.

    Args:
        folder: A folder with `adapter_config.json`, as peft's `save_pretrained` writes it.

    Raises:
        ModelError: The file cannot be used, peft is not installed, or the adapter is of a kind that is refused.
    """
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind, base = str(config["peft_type"]), str(config["base_model_name_or_path"] or "")
        revision = config.get("revision") or None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} cannot be read: {type(error).__name__} {error}",
            expected="the configuration of an adapter, as peft's save_pretrained writes it",
            next_step="save the adapter again",
        ) from error
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            f"{folder} holds an adapter ({kind}), and peft, which reads it, is not installed",
            next_step="pip install 'layerscope[peft]'",
        )
    require_readable(kind, config)
    return base, revision


def require_readable_adapters(model: PreTrainedModel) -> None:
    """Refuse a model with an adapter whose effect does not lie in the blocks.

    Raises:
        ModelError: The message says which, and why.
    """
    for config in (getattr(model, "peft_config", None) or {}).values():
        require_readable(_kind(config), config)


def require_readable(kind: str, config: Any) -> None:  # noqa: ANN401 - a dictionary, or a configuration of peft
    """Refuse a kind of adapter whose effect does not lie in the blocks.

    Args:
        kind: Its name in peft, such as `LORA`.
        config: Its configuration.

    Raises:
        ModelError: The message says why.
    """
    said = config.get if isinstance(config, dict) else vars(config).get
    reason = ""
    if kind in _WITH_VIRTUAL_TOKENS:
        reason = "it puts virtual tokens before every prompt, which have no text and no place in a capture"
    elif kind in _OUTSIDE_THE_BLOCKS:
        reason = "a part of it runs outside of the decoder"
    elif said("alora_invocation_tokens"):
        reason = "it begins in the middle of a prompt, at its invocation tokens"
    if reason:
        raise ModelError(
            f"a model with an adapter of the kind {kind} cannot be captured: {reason}",
            expected="LoRA or another adapter that changes the layers themselves",
            next_step="capture the base model without it",
        )


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Put the adapter of a folder onto its base model, unless transformers has done so.

    Args:
        model: The base model.
        folder: What `adapter_base` was given.

    Raises:
        ModelError: The file lacks weights of the adapter, which peft would leave random, or the base model lies on the
            disk.
    """
    from peft import get_peft_model_state_dict, load_peft_weights

    from engine.models.offload import is_offloaded

    if is_offloaded(model):
        raise ModelError(
            f"the base model of the adapter in {folder} does not fit into memory, and peft adapts only what is there",
            expected="room for the whole base model",
            next_step="merge the adapter into its base model, save that and load it, or use a larger machine",
        )

    if not getattr(model, "_hf_peft_config_loaded", False):
        model.load_adapter(str(folder))
    (name,) = getattr(model, "peft_config", {}) or {"default": None}
    # Without the embedding: to see whether it was resized, peft would ask the hub for the base model's configuration.
    saved = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    wanted = {base_name(key) for key in saved}
    found = {base_name(key) for key in load_peft_weights(str(folder), device="cpu")}
    found -= {base_name(key) for key, _ in model.named_parameters()} - wanted
    if wanted != found:
        missing = sorted(wanted - found) or sorted(found - wanted)
        raise ModelError(
            f"the adapter in {folder} and its configuration do not fit: {missing[0]}"
            f" {'is missing' if wanted - found else 'has no place in the model'}"
            + (f", and {len(missing) - 1} more" if len(missing) > 1 else ""),
            expected="a weight for each layer that the configuration names, and no other",
            next_step="save the adapter again, or fetch its files again",
        )


def list_adapters(model: PreTrainedModel) -> list[Adapter]:
    """The adapters of a model as they stand now: active or not, merged or not.

    Args:
        model: A model of transformers, or peft's wrapper around one; no other thread may be running it for a capture.

    Raises:
        ModelError: The weights of one are not where they can be recorded.
    """
    if "peft" not in sys.modules:
        return []
    from engine.models.offload import weights_at_hand

    configs = getattr(model, "peft_config", None) or {}
    tensors, layers = adapter_tensors(model), list(_adapted(model))
    weights: dict[str, list[tuple[str, Tensor]]] = {name: [] for name in [*configs, *tensors.values()]}
    for full, weight in weights_at_hand(model) if weights else ():
        if name := tensors.get(full):
            own = base_name(full).replace(f".{name}.", ".").removesuffix(f".{name}")
            weights[name].append((own, weight.clone() if weight.is_cpu else weight))
    return [_describe(name, configs.get(name), layers, own) for name, own in weights.items()]


def adapter_tensors(model: PreTrainedModel) -> dict[str, str]:
    """Full name of each parameter and buffer that belongs to an adapter, with the name of that adapter."""
    if "peft" not in sys.modules:
        return {}
    found: dict[str, str] = {}
    for path, module in _adapted(model):
        for part in {*module.adapter_layer_names, *module.other_param_names}:
            by_adapter = getattr(module, part, None)
            for kind in ("named_parameters", "named_buffers"):
                names = [name for name, _ in getattr(by_adapter, kind, dict)()]
                found |= {f"{path}.{part}.{name}": name.partition(".")[0] for name in names}
    return found


def inner_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model that peft is wrapped around, or the model itself."""
    get_base_model: Any = getattr(model, "get_base_model", None)
    return model if get_base_model is None else cast("PreTrainedModel", get_base_model())


def base_name(name: str) -> str:
    """What a parameter of the base model is called without peft's wrappers around it.

    Example:
        >>> base_name("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight")
        'model.layers.0.self_attn.q_proj.weight'
    """
    name = name.removeprefix("base_model.model.")
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def _adapted(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Path and module of everything that peft has put an adapter on."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            yield path, module


def _describe(
    name: str,
    config: Any,  # noqa: ANN401 - a configuration of peft
    layers: list[tuple[str, Any]],
    weights: list[tuple[str, Tensor]],
) -> Adapter:
    kind = _kind(config)
    if not weights:
        raise ModelError(
            f"the weights of the adapter {name!r} ({kind}) are not in the layers, where they could be recorded",
            expected="LoRA or another adapter that changes the layers themselves",
            next_step="capture the base model without it",
        )
    scales = {
        base_name(path): float(module.scaling[name])
        for path, module in layers
        if name in (getattr(module, "scaling", None) or {})
    }
    return Adapter(
        name=name,
        kind=kind,
        rank=getattr(config, "r", None),
        scales=sorted(set(scales.values())),
        active=any(name in module.active_adapters and not module.disable_adapters for _, module in layers),
        merged=any(name in module.merged_adapters for _, module in layers),
        weights=_hash(weights, scales),
    )


def _hash(weights: list[tuple[str, Tensor]], scales: dict[str, float]) -> str:
    """SHA-256 over scales, names, shapes, dtypes and all values of an adapter."""
    from engine.models.offload import raw_bytes

    digest = hashlib.sha256(str(sorted(scales.items())).encode())
    for name, weight in weights:
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(raw_bytes(weight.reshape(-1).cpu()))
    return digest.hexdigest()


def _kind(config: Any) -> str:  # noqa: ANN401 - a configuration of peft, None where there is none
    kind = getattr(config, "peft_type", "")
    return str(getattr(kind, "value", kind)) or "unknown"
