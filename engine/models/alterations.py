"""Detect changes to a model's weights, hooks and modules."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from engine.models.adapters import adapter_tensors, base_name, inner_model
from engine.models.forward import input_device
from engine.models.offload import (
    each_module,
    is_offloaded,
    raw_bytes,
    stored_buffers,
    weights_at_hand,
)
from engine.models.thread_hooks import ThreadHook

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_MOST_SAMPLES = 2048  # per parameter


def sample_weights(model: PreTrainedModel) -> str:
    """Fingerprint the base model's weights by their metadata and sampled values.

    The fingerprint is a SHA-256 over parameters and stored buffers. Values are sampled along the wrapped diagonal of a
    matrix, which catches a changed row or column in all but the largest matrices; in those, samples are evenly spaced.
    A change to single values may go undetected. Adapter weights are excluded: `list_adapters` covers them.

    Args:
        model: The model, with weights on any device or on disk. No other thread may be capturing from it.
    """
    metadata, samples, adapted, offloaded = [], [], adapter_tensors(model), is_offloaded(model)
    written = dict[tuple[torch.Size, torch.dtype], str]()  # a model has few shapes; to write one takes long
    for name, weight in weights_at_hand(model):
        if name not in adapted:
            kind = (weight.shape, weight.dtype)
            if kind not in written:
                written[kind] = f" {tuple(weight.shape)} {weight.dtype}"
            metadata.append(base_name(name) + written[kind])
            # A view would keep a weight loaded from disk in memory.
            samples.append(sample_of(weight).clone() if offloaded else sample_of(weight))
    digest = hashlib.sha256("".join(metadata).encode())
    for part in copied(samples):
        digest.update(raw_bytes(part))
    return digest.hexdigest()


def sample_of(weight: Tensor) -> Tensor:
    """Sample values of a weight, `(samples,)`; usually a view."""
    shape, count = weight.shape, weight.numel()
    step = shape[-1] + 1 if len(shape) > 1 else 1
    step *= max(1, -(-count // (step * _MOST_SAMPLES)))
    if type(weight) in (Tensor, nn.Parameter) and weight.is_contiguous():
        return weight.as_strided((-(-count // step),), (step,))  # one call instead of two
    return weight.flatten()[::step]  # a quantization library's tensor may not know strides


def copied(values: Sequence[Tensor]) -> list[Tensor]:
    """Copy one-dimensional tensors to the CPU, in order.

    Tensors with the same device and dtype are copied in one transfer; if there are no others, they return as one.
    """
    together = _by_kind(values)
    if len(together) == 1:
        return [torch.cat([*values]).cpu()]
    arrived = {
        kind: iter(torch.split(torch.cat(group).cpu(), [len(one) for one in group])) for kind, group in together.items()
    }
    return [next(arrived[one.device, one.dtype]) for one in values]


def sampled_values(weights: Sequence[Tensor]) -> list[Tensor]:
    """Copy the values that `sample_weights` reads, on their devices, with those of adapters and without any names.

    While the snapshot of a model stays the same, equal values mean the same fingerprint, at a fraction of its cost.

    Args:
        weights: From `each_weight`, all in memory.

    Returns:
        One tensor per device and dtype, `(samples,)`.
    """
    with torch.no_grad():
        return [torch.cat(group) for group in _by_kind([sample_of(weight) for weight in weights]).values()]


def _by_kind(values: Sequence[Tensor]) -> dict[tuple[torch.device, torch.dtype], list[Tensor]]:
    together: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for one in values:
        together.setdefault((one.device, one.dtype), []).append(one)
    return together


# Values in a configuration that affect no state of a model in eval mode, and parts of their names.
_NO_STATES = {"architectures", "dtype", "initializer_range", "id2label", "label2id", "problem_type", "return_dict"}
_NO_STATES |= {"torch_dtype", "transformers_version", "use_cache", "auto_map", "tokenizer_class", "torchscript"}
_NO_STATES |= {"finetuning_task", "tie_word_embeddings", "unsloth_version"}
_NO_STATES |= {"output_attentions", "output_hidden_states", "output_router_logits"}
_NO_STATES_IN = ("_token_id", "dropout")


def hash_configuration(model: PreTrainedModel) -> str:
    """Fingerprint the values in a model's configuration that may affect states, as a SHA-256.

    Not all of what a model computes follows from its weights: rotary positions, for example, may be scaled.

    Args:
        model: The model. Of one that also reads images, only the configuration of the text part counts.
    """
    values = {
        name: value
        for name, value in model.config.get_text_config(decoder=True).to_dict().items()
        if not (name.startswith("_") or name in _NO_STATES or any(part in name for part in _NO_STATES_IN))
    }
    plain = json.loads(json.dumps(values, default=str))  # keys are texts now, and can be sorted
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


# Modules and hooks from these packages affect how a model is stored, placed or run, not what it computes.
_FRAMEWORKS = {
    *("torch", "transformers", "transformers_modules", "accelerate", "peft", "kernels"),
    *("auto_round", "aqlm", "awq", "bitsandbytes", "compressed_tensors", "eetq", "fbgemm_gpu", "gptqmodel", "hqq"),
    *("optimum", "quark", "torchao", "vptq", "spqr_quant", "fp_quant"),
    *("causal_conv1d", "deepspeed", "fla", "flash_attn", "liger_kernel", "mamba_ssm", "xformers"),
}
_OWN_HOOKS = "engine.models."  # hooks of a capture or check, perhaps in another thread, only read states


@dataclass(frozen=True)
class Snapshot:
    """The observable state of a model, taken without running it.

    It holds no reference to a hook or a function, which might keep the model alive. It omits plain attributes of
    modules, such as a scale.

    Attributes:
        structure: Module types, hooks and replaced forwards, the values in the configuration, autocast, kind of device.
        weights: Address and version of every parameter and stored buffer. It misses a change that bypasses torch's
            version counter, for example through `.data`; `sample_weights` reads values.
        adapters: The adapters that each module applies, whether they are merged, and their scales.
    """

    structure: tuple[object, ...]
    weights: tuple[tuple[int, int], ...]
    adapters: tuple[object, ...]

    def edited_since(self, before: Snapshot) -> bool:
        """Whether a tensor was written in place, by torch's version counter."""
        return len(self.weights) == len(before.weights) and any(
            address == earlier and version > old
            for (address, version), (earlier, old) in zip(self.weights, before.weights, strict=True)
        )


def take_snapshot(model: PreTrainedModel) -> Snapshot:
    """Take a snapshot of a model: a few milliseconds for a few hundred modules.

    Args:
        model: The model. No other thread may be capturing from it.
    """
    modules: list[object] = []
    weights: list[tuple[int, int]] = []
    adapters: list[object] = []
    kinds = dict[type, tuple[int, bool]]()
    for module in each_module(model):
        kind = type(module)
        if kind not in kinds:
            kinds[kind] = id(kind.forward), hasattr(kind, "adapter_layer_names")
        forward, adapted = kinds[kind]
        hooked = module._forward_pre_hooks or module._forward_hooks
        hooks = tuple(handle for handle, _ in _hooks(module)) if hooked else ()
        modules += (kind, forward, id(module.__dict__.get("forward")), hooks)
        if module._parameters:
            weights += [_version(weight) for weight in module._parameters.values() if weight is not None]
        if module._buffers:
            weights += [_version(buffer) for _, buffer in stored_buffers(module)]
        if adapted:
            adapters.append(_adapter_state(module))
    configuration = repr(sorted(vars(model.config.get_text_config(decoder=True)).items(), key=lambda item: item[0]))
    everywhere = tuple(handle for handle, _ in _global_hooks())
    structure = (tuple(modules), everywhere, configuration, autocast_dtype(model), input_device(model).type)
    return Snapshot(structure, tuple(weights), tuple(adapters))


def find_alterations(model: PreTrainedModel) -> list[str]:
    """Describe the code in a model that is neither its own nor a framework's.

    A model's own code is the code in the package that defines its class: a custom architecture is not an alteration.

    Args:
        model: Any transformers causal language model.

    Returns:
        One phrase per alteration; empty if there is none.

    Example:
        >>> find_alterations(model)
        []
    """
    own = _FRAMEWORKS | {_package(kind) for kind in type(inner_model(model)).__mro__}
    found = [f"every module has the hook {_origin(hook)}" for _, hook in _global_hooks()]
    for name, module in model.named_modules():
        place = name or "the model"
        if _package(type(module)) not in own:
            found.append(f"{place} is a {_origin(type(module))}")
        forwards = filter(None, (type(module).forward, module.__dict__.get("forward")))
        found += [f"{place} has the forward {_origin(one)}" for one in forwards if _package(one) not in own]
        found += [f"{place} {_effect(hook)}" for _, hook in _hooks(module)]
        found += [f"{place} has the hook {_origin(hook)}" for hook in _accelerate_hooks(module) if _is_foreign(hook)]
    return found


def module_types(model: PreTrainedModel) -> dict[str, type]:
    """Map the path of every module to its class, ignoring peft's wrappers."""
    modules = [(name, type(module)) for name, module in model.named_modules()]
    wrappers = {kind for kind in {kind for _, kind in modules} if _package(kind) == "peft"}
    return {base_name(f"{name}.")[:-1]: kind for name, kind in modules if kind not in wrappers}


def find_replaced(model: PreTrainedModel, first: Mapping[str, type]) -> list[str]:
    """Describe the modules whose class has changed since the model was first seen.

    Args:
        model: The model.
        first: The module classes at that time, from `module_types`.
    """
    return [
        f"{name or 'the model'} is a {_origin(kind)} and was a {_origin(first[name])}"
        for name, kind in module_types(model).items()
        if first.get(name, kind) is not kind
    ]


def autocast_dtype(model: PreTrainedModel) -> str | None:
    """Return this thread's autocast dtype on the model's device, None if disabled."""
    gpu = torch.accelerator.current_accelerator()
    enabled = [kind for kind in ("cpu", *([gpu.type] if gpu else [])) if torch.is_autocast_enabled(kind)]
    if not enabled:
        return None
    devices = {weight.device.type for weight in model.parameters() if not weight.is_meta} or {"cpu"}
    dtypes = {str(torch.get_autocast_dtype(kind)).removeprefix("torch.") for kind in devices.intersection(enabled)}
    return min(dtypes, default=None)


def _hooks(module: nn.Module) -> Iterator[tuple[int, Callable[..., Any]]]:
    """Yield a module's hooks that may change states, with their ids.

    torch never reuses an id.
    """
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        if hooks:
            yield from ((handle, hook) for handle, hook in list(hooks.items()) if _is_foreign(hook))


def _accelerate_hooks(module: nn.Module) -> list[object]:
    """Hooks that accelerate calls around a module's forward, its own among them."""
    hook = module.__dict__.get("_hf_hook")
    return [*getattr(hook, "hooks", [hook])] if hook is not None else []


def _global_hooks() -> Iterator[tuple[int, Callable[..., Any]]]:
    """Yield hooks registered globally for all modules, in the same form."""
    for hooks in (torch_modules._global_forward_pre_hooks, torch_modules._global_forward_hooks):
        yield from ((handle, hook) for handle, hook in list(hooks.items()) if _is_foreign(hook))


def _effect(hook: object) -> str:
    return hook.alteration if isinstance(hook, ThreadHook) else f"has the hook {_origin(hook)}"


def _is_foreign(hook: object) -> bool:
    if isinstance(hook, ThreadHook):
        return bool(hook.alteration) and hook.acts_here
    return _package(hook) not in _FRAMEWORKS and not str(_unwrapped(hook).__module__).startswith(_OWN_HOOKS)


def _adapter_state(module: nn.Module) -> tuple[object, ...]:
    """Return the active and merged adapters of a peft layer, and their scales."""
    known: Any = module
    scaling = getattr(module, "scaling", None)
    scales = tuple(map(str, scaling.items())) if isinstance(scaling, dict) else ()
    return (tuple(known.active_adapters), known.disable_adapters, tuple(known.merged_adapters), scales)


def _package(defined: Any) -> str:  # noqa: ANN401 - a class or any callable
    return str(_unwrapped(defined).__module__).partition(".")[0]


def _origin(defined: Any) -> str:  # noqa: ANN401 - as above
    defined = _unwrapped(defined)
    return f"{defined.__module__}.{defined.__qualname__}"


def _unwrapped(defined: Any) -> Any:  # noqa: ANN401 - as above
    """Return the object that knows where a callable was defined.

    That is the function inside a `partial`, or the class of a callable object.
    """
    while isinstance(defined, partial):
        defined = defined.func
    return defined if hasattr(defined, "__qualname__") else type(defined)


def _version(weight: Tensor) -> tuple[int, int]:
    if weight.is_meta or weight.is_inference():  # offloaded: a new tensor after each pass; inference: no version
        return (0, 0)
    try:
        return weight.data_ptr(), weight._version
    except RuntimeError:  # a quantization library's tensor has no storage
        return (id(weight), weight._version)
