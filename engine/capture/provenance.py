"""Record how a capture was made, as JSON-compatible provenance."""

from __future__ import annotations

import importlib.metadata
import platform
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from engine.models.description import examine_model
from engine.models.forward import input_device
from engine.records.captures import ModelState, Provenance, ResponseSource
from engine.version import VERSION

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from engine.capture.run_settings import Settings
    from engine.records.models import ModelConfig


def trace_provenance(
    model: PreTrainedModel,
    settings: Settings,
    *,
    alias: str | None = None,
    chat_template: str | None = None,
    template_time: str | None = None,
    seed: int | None = None,
    responses: ResponseSource | None = None,
) -> Provenance:
    """Collect everything about the model and the run that affects the states.

    Args:
        model: The captured model.
        settings: Settings of the run.
        alias: Short name of the model, if the caller has one.
        chat_template: Hash of the chat template that rendered the prompts.
        template_time: The time passed to the chat template, if it reads the clock.
        seed: Seed for sampling pairs.
        responses: Where the responses come from, if there are any.
    """
    known = settings.model
    state = _state(model, known)
    provenance = Provenance(
        model=known.source.model_id,
        alias=alias or known.source.alias,
        revision=state["revision"],
        source=known.source.kind,
        dtype=state["dtype"],
        device=str(input_device(model)),
        attention=str(model.config._attn_implementation),
        chat_template=chat_template,
        versions=state["versions"],
        site=settings.site,
        positions=settings.positions.text,
        mode="hooks" if settings.use_hooks else "whole_pass",
        batch_size=settings.limits.prompts,
        token_budget=settings.limits.tokens,
        prefix_reuse=_prefix_reuse(settings),
        products="oneDNN" if settings.onednn else "default",
        seed=seed,
        receipt=known.receipt,
    )
    cast("dict[str, Any]", provenance).update(state)
    if responses is not None:
        provenance["responses"] = responses
    if settings.compiled != "off":
        provenance["compiled"] = settings.compiled
    if template_time is not None:
        provenance["template_time"] = template_time
    return provenance


def model_state(model: PreTrainedModel) -> ModelState:
    """What a model computes with now; see `changed_model` for how it differs from that of a capture.

    Raises:
        ModelError: See `examine_model`.
    """
    return _state(model, examine_model(model).config)


def _state(model: PreTrainedModel, known: ModelConfig) -> ModelState:
    state = ModelState(
        revision=known.source.revision,
        dtype=str(model.dtype).removeprefix("torch."),
        versions=library_versions(),
        weights=known.weights,
        configuration=known.configuration,
    )
    # Present only if the model differs from its checkpoint.
    if known.adapters:
        state["adapters"] = list(known.adapters)
    if altered := [*known.added, *known.edited]:
        state["altered"] = altered
    if known.added:
        state["added_code"] = True
    if known.autocast is not None:
        state["autocast"] = known.autocast
    return state


def _prefix_reuse(settings: Settings) -> str:
    limited = settings.prefix_reuse == "on" and settings.window is not None
    return f"on, if no prompt is longer than {settings.window} tokens" if limited else settings.prefix_reuse


def library_versions() -> dict[str, str]:
    """Versions of the libraries that affect the states."""
    own = {"python": platform.python_version(), "layerscope": VERSION}
    return own | {name: _installed(name) for name in ("torch", "transformers")}


@cache
def _installed(name: str) -> str:
    return importlib.metadata.version(name)
