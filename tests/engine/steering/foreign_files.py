"""Files of control vectors in the layouts of other tools, written with their libraries and nothing of the engine."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch

WIDTH, BLOCKS = 32, 4  # of the tiny llama


def vector(seed: int, width: int = WIDTH) -> np.ndarray:
    """A float32 vector, not of unit length."""
    return (3 * np.random.default_rng(seed).normal(size=width)).astype(np.float32)


def write_gguf(path: Path, tensors: dict[str, np.ndarray], texts: dict[str, str] | None = None) -> Path:
    """A GGUF file of these tensors, with the metadata of a control vector."""
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(tensors))
    for key, text in (texts or {}).items():
        writer.add_string(key, text)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_persona_vectors(path: Path, blocks: int = BLOCKS) -> np.ndarray:
    """A `TRAIT_response_avg_diff.pt`: one row for the embeddings and one after each block."""
    rows = np.stack([vector(row) for row in range(blocks + 1)])
    torch.save(torch.from_numpy(rows), path)
    return rows


def write_refusal_direction(folder: Path, layer: int) -> np.ndarray:
    """A `direction.pt` with its metadata."""
    values = vector(layer).astype(np.float64)
    torch.save(torch.from_numpy(values), folder / "direction.pt")
    (folder / "direction_metadata.json").write_text(json.dumps({"pos": -1, "layer": layer}, indent=4))
    return values


def write_mean_diffs(path: Path, positions: int = 3, blocks: int = BLOCKS) -> np.ndarray:
    """A `mean_diffs.pt`: positions, block inputs, width."""
    values = np.random.default_rng(5).normal(size=(positions, blocks, WIDTH))
    torch.save(torch.from_numpy(values), path)
    return values
