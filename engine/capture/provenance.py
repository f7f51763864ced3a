"""Record how a capture was made, as JSON-compatible provenance."""

from __future__ import annotations

import importlib.metadata
import platform
from functools import cache
from typing import TYPE_CHECKING

from engine.models.forward import input_device
from engine.records.captures import Provenance, ResponseSource
from engine.version import VERSION

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from engine.capture.run_settings import Settings


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
    provenance = Provenance(
        model=known.source.model_id,
        alias=alias or known.source.alias,
        revision=known.source.revision,
        source=known.source.kind,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(input_device(model)),
        attention=str(model.config._attn_implementation),
        chat_template=chat_template,
        versions=library_versions(),
        site=settings.site,
        positions=settings.positions.text,
        mode="hooks" if settings.use_hooks else "whole_pass",
        batch_size=settings.limits.prompts,
        token_budget=settings.limits.tokens,
        prefix_reuse=_prefix_reuse(settings),
        products="oneDNN" if settings.onednn else "default",
        seed=seed,
        receipt=known.receipt,
        weights=known.weights,
    )
    # Present only if the model differs from its checkpoint, if it was compiled, or if the template time matters.
    if known.adapters:
        provenance["adapters"] = list(known.adapters)
    if altered := [*known.added, *known.edited]:
        provenance["altered"] = altered
    if known.added:
        provenance["added_code"] = True
    if known.autocast is not None:
        provenance["autocast"] = known.autocast
    if responses is not None:
        provenance["responses"] = responses
    if settings.compiled != "off":
        provenance["compiled"] = settings.compiled
    if template_time is not None:
        provenance["template_time"] = template_time
    return provenance


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
