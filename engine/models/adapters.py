"""peft adapters: load them, list them, and refuse unsupported kinds.

LoRA and similar methods change what the blocks compute. A capture reads the result, and its record lists the adapters.
Prompt and prefix tuning prepend virtual tokens, which a capture of the decoder does not run: such models are refused.
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
    """Return the base model and the revision that an adapter folder names.

    Args:
        folder: A folder with an `adapter_config.json` written by peft's `save_pretrained`.

    Raises:
        ModelError: The file cannot be used, peft is not installed, or this kind of adapter is not supported.
    """
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind, base = str(config["peft_type"]), str(config["base_model_name_or_path"] or "")
        revision = config.get("revision") or None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} cannot be read: {type(error).__name__} {error}",
            expected="an adapter configuration written by peft's save_pretrained",
            next_step="save the adapter again",
        ) from error
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            f"{folder} contains a peft adapter ({kind}), but peft is not installed",
            next_step="pip install 'layerscope[peft]'",
        )
    require_readable(kind, config)
    return base, revision


def require_readable_adapters(model: PreTrainedModel) -> None:
    """Refuse a model with an adapter that acts outside the blocks.

    Raises:
        ModelError: An adapter is of an unsupported kind. The message names the kind and the reason.
    """
    for config in (getattr(model, "peft_config", None) or {}).values():
        require_readable(_kind(config), config)


def require_readable(kind: str, config: Any) -> None:  # noqa: ANN401 - a dictionary or a peft configuration
    """Refuse a kind of adapter that acts outside the blocks.

    Args:
        kind: The adapter's type in peft, such as `LORA`.
        config: The adapter's configuration.

    Raises:
        ModelError: The kind is not supported. The message gives the reason.
    """
    setting = config.get if isinstance(config, dict) else vars(config).get
    reason = ""
    if kind in _WITH_VIRTUAL_TOKENS:
        reason = "it prepends virtual tokens, which have no text and no position in a capture"
    elif kind in _OUTSIDE_THE_BLOCKS:
        reason = "part of it runs outside the decoder"
    elif setting("alora_invocation_tokens"):
        reason = "it takes effect in the middle of a prompt, from its invocation tokens on"
    if reason:
        raise ModelError(
            f"a model with a {kind} adapter cannot be captured: {reason}",
            expected="LoRA or another adapter that modifies the layers themselves",
            next_step="capture the base model without the adapter",
        )


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Load an adapter onto its base model, unless transformers already has.

    Args:
        model: The base model.
        folder: The adapter folder, as passed to `adapter_base`.

    Raises:
        ModelError: The file lacks adapter weights, which peft would leave random, or the base model is offloaded to
            disk.
    """
    from peft import get_peft_model_state_dict, load_peft_weights

    from engine.models.offload import is_offloaded

    if is_offloaded(model):
        raise ModelError(
            f"the base model of the adapter in {folder} does not fit into memory, as peft requires",
            expected="enough memory for the whole base model",
            next_step="merge the adapter into its base model, save and load the result, or use a larger machine",
        )

    if not getattr(model, "_hf_peft_config_loaded", False):
        model.load_adapter(str(folder))
    (name,) = getattr(model, "peft_config", {}) or {"default": None}
    # To see whether the embedding was resized, peft would fetch the base model's configuration from the hub.
    saved = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    wanted = {base_name(key) for key in saved}
    found = {base_name(key) for key in load_peft_weights(str(folder), device="cpu")}
    found -= {base_name(key) for key, _ in model.named_parameters()} - wanted
    if wanted != found:
        missing = sorted(wanted - found) or sorted(found - wanted)
        raise ModelError(
            f"the weights of the adapter in {folder} do not match its configuration: {missing[0]}"
            f" {'is missing' if wanted - found else 'does not exist in the model'}"
            + (f", and {len(missing) - 1} more" if len(missing) > 1 else ""),
            expected="weights for exactly the layers that the configuration names",
            next_step="save the adapter again, or download its files again",
        )


def list_adapters(model: PreTrainedModel) -> list[Adapter]:
    """List the adapters currently on a model, whether active or merged or neither.

    Args:
        model: A transformers model, or peft's wrapper around one. No other thread may be capturing from it.

    Raises:
        ModelError: The weights of an adapter are outside the layers and cannot be recorded.
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
    """Map the full names of adapter parameters and buffers to adapter names."""
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
    """Return the model inside peft's wrapper, or the model itself."""
    get_base_model: Any = getattr(model, "get_base_model", None)
    return model if get_base_model is None else cast("PreTrainedModel", get_base_model())


def base_name(name: str) -> str:
    """Strip the names of peft's wrappers from the name of a base model parameter.

    Example:
        >>> base_name("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight")
        'model.layers.0.self_attn.q_proj.weight'
    """
    name = name.removeprefix("base_model.model.")
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def _adapted(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Yield the path and module of every layer with an adapter on it."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            yield path, module


def _describe(
    name: str,
    config: Any,  # noqa: ANN401 - a peft configuration
    layers: list[tuple[str, Any]],
    weights: list[tuple[str, Tensor]],
) -> Adapter:
    kind = _kind(config)
    if not weights:
        raise ModelError(
            f"the weights of the adapter {name!r} ({kind}) are outside the layers and cannot be recorded",
            expected="LoRA or another adapter that modifies the layers themselves",
            next_step="capture the base model without the adapter",
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
    """Return the SHA-256 of an adapter's scales, names, shapes, dtypes and values."""
    from engine.models.offload import raw_bytes

    digest = hashlib.sha256(str(sorted(scales.items())).encode())
    for name, weight in weights:
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(raw_bytes(weight.reshape(-1).cpu()))
    return digest.hexdigest()


def _kind(config: Any) -> str:  # noqa: ANN401 - a peft configuration or None
    kind = getattr(config, "peft_type", "")
    return str(getattr(kind, "value", kind)) or "unknown"
