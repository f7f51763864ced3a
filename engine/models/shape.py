"""Depth and width of a model, without loading its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import transformers

from engine.models.description import describe_model
from engine.models.load_errors import readable_load_errors, require_cache_folder
from engine.models.loading import require_sane_files
from engine.models.registry import find_source
from engine.models.sources import convert, require_on_hub
from engine.models.structure import find_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Shape(NamedTuple):
    """Depth and width of a model.

    Attributes:
        alias: The alias or path that the model was named by.
        model_id: Its id.
        num_layers: Number of decoder blocks.
        hidden_size: Width of the residual stream.
    """

    alias: str
    model_id: str
    num_layers: int
    hidden_size: int


def find_shape(model: str | Path | PreTrainedModel) -> Shape:
    """Find the number of decoder blocks and the width of a model.

    A GGUF file is converted first, as when it is loaded; of a model on the hub only the config is downloaded.

    Args:
        model: A loaded model, an alias, a hub id, a folder, or a `.gguf` file.

    Raises:
        RequestError: There is no such model.
        ModelError: Its config cannot be read, or the family cannot be captured.

    Example:
        >>> find_shape("smollm2")[2:]
        (30, 576)
    """
    if not isinstance(model, str | Path):
        known = describe_model(model)
        return Shape(known.source.alias, known.source.model_id, known.num_layers, known.hidden_size)
    require_cache_folder()
    source = find_source(model)
    if not source.local:
        require_on_hub(source)
    with readable_load_errors(source.model_id, source.location):
        location = str(convert(source)) if source.gguf_file else source.location
        require_sane_files(source, location, trusted=False)
        options: dict[str, Any] = {"revision": source.revision} if source.kind == "hub" else {}
        config = transformers.AutoConfig.from_pretrained(location, trust_remote_code=False, **options)
        with torch.device("meta"):
            blocks = find_blocks(transformers.AutoModelForCausalLM.from_config(config)).blocks
    return Shape(str(model), source.model_id, len(blocks), config.get_text_config(decoder=True).hidden_size)
