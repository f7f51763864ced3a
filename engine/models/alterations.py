"""Fingerprints of weights: enough to see that another model is meant, or that one was changed since it was loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from engine.models.adapters import adapter_tensors, base_name, inner_model
from engine.models.offload import raw_bytes, stored_buffers, weights_at_hand

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_MOST_SAMPLES = 2048  # of one parameter


def sample_weights(model: PreTrainedModel) -> str:
    """SHA-256 over the name, shape and dtype of every weight of the base model, and some of its values.

    Weights are parameters and stored buffers. The values lie on the diagonal of a matrix, wrapped around, so that a
    changed row or column is seen in all but the largest ones; of those they are spread evenly. A change of single
    values may go unseen. Adapters are left out: `list_adapters` names them.

    Args:
        model: The model, wherever its weights are; no other thread may be running it for a capture.
    """
    digest, samples, adapted = hashlib.sha256(), [], adapter_tensors(model)
    for name, weight in weights_at_hand(model):
        if name not in adapted:
            digest.update(f"{base_name(name)} {tuple(weight.shape)} {weight.dtype}".encode())
            samples.append(sample_of(weight))
    for one in copied(samples):
        digest.update(raw_bytes(one))
    return digest.hexdigest()


def sample_of(weight: Tensor) -> Tensor:
    """Some values of a weight, `(samples,)`."""
    flat = weight.flatten()
    step = weight.shape[-1] + 1 if weight.dim() > 1 else 1
    step *= max(1, -(-len(flat) // (step * _MOST_SAMPLES)))
    return flat[::step].clone()  # a view would keep a weight that was fetched from the disk


def copied(values: Sequence[Tensor]) -> list[Tensor]:
    """One-dimensional tensors on the CPU, in their order; those of one device and dtype are copied at once."""
    together: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for one in values:
        together.setdefault((one.device, one.dtype), []).append(one)
    arrived = {
        kind: iter(torch.split(torch.cat(group).cpu(), [len(one) for one in group])) for kind, group in together.items()
    }
    return [next(arrived[one.device, one.dtype]) for one in values]


# Packages whose modules and hooks are a part of how a model is stored, placed or computed, not of what it computes.
_FRAMEWORKS = {
    *("torch", "transformers", "transformers_modules", "accelerate", "peft", "kernels"),
    *("auto_round", "aqlm", "awq", "bitsandbytes", "compressed_tensors", "eetq", "fbgemm_gpu", "gptqmodel", "hqq"),
    *("optimum", "quark", "torchao", "vptq", "spqr_quant", "fp_quant"),
    *("causal_conv1d", "deepspeed", "fla", "flash_attn", "liger_kernel", "mamba_ssm", "xformers"),
}
_OWN_HOOKS = "engine.models."  # those of a capture or check, perhaps of another thread: they change nothing


@dataclass(frozen=True)
class Snapshot:
    """What can be seen of a model without running it.

    It holds no reference to a hook or a function, which might keep the model alive. Plain attributes of modules, such
    as a scale, are not in it.

    Attributes:
        structure: Modules by type, hooks and replaced forwards, the numbers of the configuration, autocast.
        weights: Address and version of every parameter and stored buffer. A change that goes around torch's count of
            versions, as through `.data`, is not seen here; `sample_weights` reads values.
        adapters: Which adapters each module applies, merged or not, and how they are scaled.
    """

    structure: tuple[object, ...]
    weights: tuple[tuple[int, int], ...]
    adapters: tuple[object, ...]

    def edited_since(self, before: Snapshot) -> bool:
        """Whether a tensor that lies where it lay before has been written to, as far as torch counts that."""
        return len(self.weights) == len(before.weights) and any(
            address == earlier and version > old
            for (address, version), (earlier, old) in zip(self.weights, before.weights, strict=True)
        )


def take_snapshot(model: PreTrainedModel) -> Snapshot:
    """Look at a model, in a few milliseconds for a few hundred modules.

    Args:
        model: The model; no other thread may be running it for a capture.
    """
    modules, weights, adapters = [], [], []
    for module in model.modules():
        kind = type(module)
        hooks = tuple(handle for handle, _ in _hooks(module))
        modules.append((kind, id(kind.forward), id(module.__dict__.get("forward")), hooks))
        weights += [_version(weight) for weight in module._parameters.values() if weight is not None]
        weights += [_version(buffer) for _, buffer in stored_buffers(module)]
        if hasattr(kind, "adapter_layer_names"):
            adapters.append(_adapter_state(module))
    configuration = repr(sorted(vars(model.config.get_text_config(decoder=True)).items(), key=lambda item: item[0]))
    structure = (tuple(modules), tuple(handle for handle, _ in _global_hooks()), configuration, autocast_dtype(model))
    return Snapshot(structure, tuple(weights), tuple(adapters))


def find_alterations(model: PreTrainedModel) -> list[str]:
    """Name the code in a model that is neither its own nor a framework's, in words; empty where there is none.

    Its own is what the package of its class defines: a model of somebody's own architecture is no altered one.

    Args:
        model: Any causal language model of transformers.

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
        found += [f"{place} has the hook {_origin(hook)}" for _, hook in _hooks(module)]
    return found


def module_types(model: PreTrainedModel) -> dict[str, type]:
    """The class of every module by its path, without what peft puts around them."""
    modules = ((name, type(module)) for name, module in model.named_modules())
    return {base_name(f"{name}.")[:-1]: kind for name, kind in modules if _package(kind) != "peft"}


def find_replaced(model: PreTrainedModel, first: Mapping[str, type]) -> list[str]:
    """Name the modules whose class is another than when the model was first seen, in words.

    Args:
        model: The model.
        first: Their classes then, from `module_types`.
    """
    return [
        f"{name or 'the model'} is a {_origin(kind)}, it was a {_origin(first[name])}"
        for name, kind in module_types(model).items()
        if first.get(name, kind) is not kind
    ]


def autocast_dtype(model: PreTrainedModel) -> str | None:
    """The dtype that this thread's autocast computes in on the model's device; None without autocast."""
    gpu = torch.accelerator.current_accelerator()
    enabled = [kind for kind in ("cpu", *([gpu.type] if gpu else [])) if torch.is_autocast_enabled(kind)]
    if not enabled:
        return None
    devices = {weight.device.type for weight in model.parameters() if not weight.is_meta} or {"cpu"}
    dtypes = {str(torch.get_autocast_dtype(kind)).removeprefix("torch.") for kind in devices.intersection(enabled)}
    return min(dtypes, default=None)


def _hooks(module: nn.Module) -> Iterator[tuple[int, Callable[..., Any]]]:
    """The hooks of a module that may change states, with torch's numbers for them, which are never given twice."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        if hooks:
            yield from ((handle, hook) for handle, hook in list(hooks.items()) if _is_foreign(hook))


def _global_hooks() -> Iterator[tuple[int, Callable[..., Any]]]:
    """Hooks on all modules of the process, in the same form."""
    for hooks in (torch_modules._global_forward_pre_hooks, torch_modules._global_forward_hooks):
        yield from ((handle, hook) for handle, hook in list(hooks.items()) if _is_foreign(hook))


def _is_foreign(hook: Callable[..., Any]) -> bool:
    return _package(hook) not in _FRAMEWORKS and not _unwrapped(hook).__module__.startswith(_OWN_HOOKS)


def _adapter_state(module: nn.Module) -> tuple[object, ...]:
    """What peft's layer does with its adapters."""
    known: Any = module
    scaling = getattr(module, "scaling", None)
    scales = tuple(map(str, scaling.items())) if isinstance(scaling, dict) else ()
    return (tuple(known.active_adapters), known.disable_adapters, tuple(known.merged_adapters), scales)


def _package(defined: Any) -> str:  # noqa: ANN401 - a class, a function or any other callable
    return str(_unwrapped(defined).__module__).partition(".")[0]


def _origin(defined: Any) -> str:  # noqa: ANN401 - as above
    defined = _unwrapped(defined)
    return f"{defined.__module__}.{defined.__qualname__}"


def _unwrapped(defined: Any) -> Any:  # noqa: ANN401 - as above
    """What says where it was defined: the function in a `partial`, the class of a callable object."""
    while isinstance(defined, partial):
        defined = defined.func
    return defined if hasattr(defined, "__qualname__") else type(defined)


def _version(weight: Tensor) -> tuple[int, int]:
    if weight.is_meta or weight.is_inference():  # offloaded: another tensor after each pass; or without a count
        return (0, 0)
    try:
        return weight.data_ptr(), weight._version
    except RuntimeError:  # a tensor of a quantization library, without memory of its own
        return (id(weight), weight._version)
