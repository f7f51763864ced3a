"""Adapters of peft on a model: which are active, and the folders that hold one.

LoRA and its relatives change what the blocks compute, so that a capture reads the adapted model without more ado. What
the record must say is which adapters these were. Prompt and prefix tuning put virtual tokens in front of the prompt,
which a capture of the decoder does not run: such a model is refused.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import ModelError
from engine.records.models import Adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"
_WITH_VIRTUAL_TOKENS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE")
_OUTSIDE_THE_BLOCKS = ("XLORA", "POLY")


def adapter_base(folder: Path) -> str:
    """The base model that the folder of an adapter names, once it is certain that the adapter can be loaded.

    Args:
        folder: A folder with `adapter_config.json`, as peft's `save_pretrained` writes it.

    Raises:
        ModelError: The file cannot be used, peft is not installed, or the adapter is of a kind that is refused.
    """
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind, base = str(config["peft_type"]), str(config["base_model_name_or_path"] or "")
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
    return base


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
    """Put the adapter of a folder onto its base model, unless transformers has found it there by itself.

    Args:
        model: The base model.
        folder: What `adapter_base` was given.
    """
    if not getattr(model, "_hf_peft_config_loaded", False):
        model.load_adapter(str(folder))


def list_adapters(model: PreTrainedModel) -> list[Adapter]:
    """The adapters of a model as they stand now: active or not, merged or not.

    Args:
        model: A model of transformers, or peft's wrapper around one.

    Raises:
        ModelError: One of them is of a kind that is refused.
    """
    if "peft" not in sys.modules:
        return []
    configs = getattr(model, "peft_config", None) or {}
    for config in configs.values():
        require_readable(_kind(config), config)
    parameters, layers = adapter_parameters(model), list(_adapted(model))
    names = dict.fromkeys([*configs, *parameters.values()])
    return [_describe(name, configs.get(name), layers, model, parameters) for name in names]


def adapter_parameters(model: PreTrainedModel) -> dict[str, str]:
    """Full name of each parameter that belongs to an adapter, with the name of that adapter."""
    if "peft" not in sys.modules:
        return {}
    found: dict[str, str] = {}
    for path, module in _adapted(model):
        for part in {*module.adapter_layer_names, *module.other_param_names}:
            named_parameters = getattr(getattr(module, part, None), "named_parameters", dict)
            names = [name for name, _ in named_parameters()]
            found |= {f"{path}.{part}.{name}": name.partition(".")[0] for name in names}
    return found


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
    model: PreTrainedModel,
    parameters: dict[str, str],
) -> Adapter:
    from engine.models.fingerprint import hash_weights

    scales = {
        base_name(path): float(module.scaling[name])
        for path, module in layers
        if name in (getattr(module, "scaling", None) or {})
    }
    weights = ((base_name(full), weight) for full, weight in model.named_parameters() if parameters.get(full) == name)
    return Adapter(
        name=name,
        kind=_kind(config),
        rank=getattr(config, "r", None),
        scales=sorted(set(scales.values())),
        active=any(name in module.active_adapters and not module.disable_adapters for _, module in layers),
        merged=any(name in module.merged_adapters for _, module in layers),
        weights=hash_weights(weights, extra=str(sorted(scales.items()))),
    )


def _kind(config: Any) -> str:  # noqa: ANN401 - a configuration of peft, None where there is none
    kind = getattr(config, "peft_type", "")
    return str(getattr(kind, "value", kind)) or "unknown"
