"""Options for loading a model, shared by all commands that load one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from engine.cli.console import Narrator
from engine.errors import LayerscopeError, RequestError
from engine.models.captured import find_captured_model, named_sources, require_captured_model
from engine.models.placement import (
    DTYPE_NAMES,
    STRATEGIES,
    LoadOptions,
    read_max_memory,
    require_dtype,
    require_strategy,
)
from engine.models.registry import find_source, list_models
from engine.records.captures import Provenance
from engine.remedies import option

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HOW = "How to run"
_NAME_IT = "name it with --model"

OtherModel = Annotated[str | None, typer.Option("--model", "-m", help="Model to run (default: that of the capture).")]
OtherDtype = Annotated[
    str | None,
    typer.Option("--dtype", help="Dtype of the model (default: that of the capture).", rich_help_panel=HOW),
]

Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="Dtype of the model: auto (its own, or float32), float32, bfloat16 or float16.",
        rich_help_panel=HOW,
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        help=f"Device map for models larger than memory, offloaded to disk: {', '.join(STRATEGIES)}.",
        rich_help_panel=HOW,
    ),
]
MaxMemory = Annotated[
    list[str] | None,
    typer.Option(
        "--max-memory",
        help="Memory limit for --device-map: 20GB for main memory, 0=20GB for GPU 0; repeat for several.",
        rich_help_panel=HOW,
    ),
]


def read_load_options(dtype: str, device_map: str | None, max_memory: Sequence[str] | None) -> LoadOptions:
    """Parse and validate the load options before a model is loaded.

    Raises:
        RequestError: See `require_dtype`, `require_strategy` and `read_max_memory`; or memory is limited without a
            device map.
    """
    require_dtype(dtype)
    if device_map is not None:
        require_strategy(device_map)
    elif max_memory:
        raise RequestError("--max-memory needs --device-map", next_step="add --device-map auto")
    return LoadOptions(dtype, device_map, read_max_memory(max_memory) if max_memory else None)


def load_captured_model(
    provenance: Provenance | None, model: str | None, dtype: str | None, options: LoadOptions, narrator: Narrator
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load the model of a capture, in the dtype of the capture, unless the user named another.

    Args:
        provenance: Provenance of the capture, or of directions.
        model: The model that the user named, if any.
        dtype: The dtype that the user named, if any.
        options: The other load options.
        narrator: Shows the progress.

    Raises:
        RequestError: The model is unknown.
        ModelError: The model cannot be loaded.
    """
    source = model or _model_of(provenance)
    find_source(source)
    if dtype is None and provenance is not None and provenance["dtype"] in DTYPE_NAMES:
        options = replace(options, dtype=provenance["dtype"])
    from engine.models.loading import load_model_and_tokenizer

    with narrator.working(f"loading {source}"):
        loaded, tokenizer, config = load_model_and_tokenizer(source, **options.arguments())
    if model is None and provenance is not None:
        require_captured_model(config, provenance, advice=_NAME_IT)
    return loaded, tokenizer


def model_option(provenance: Provenance | None, given: str = "") -> str:
    """The option with which a suggested command finds the model of a capture; empty if the record suffices.

    Args:
        provenance: Provenance of the capture.
        given: The model as the user named it for the capture, if known.
    """
    if provenance is not None:
        try:
            find_captured_model(provenance, {listing.alias: listing.source for listing in list_models()}, advice="")
            return ""
        except RequestError:  # an alias may belong to another model now
            pass
        except LayerscopeError:  # a damaged registry; the command will say so
            return ""
    on_hub = provenance["model"] if provenance is not None and provenance["model"].count("/") == 1 else ""
    return option("--model", given or on_hub or "MODEL")


def _model_of(provenance: Provenance | None) -> str:
    if provenance is None:
        raise RequestError("the capture does not record its model", next_step=_NAME_IT)
    return find_captured_model(provenance, named_sources(provenance), advice=_NAME_IT)
