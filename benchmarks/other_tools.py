"""The tools that layerscope is compared with, each doing the same work by its own API, in its best mode for it.

Every function takes the model that layerscope loaded and gives a function that reads the states of one batch of texts.
The packages are looked for when a way is prepared: none has to be installed. `requirements.txt` beside this file says
in which versions they were measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

import torch

from benchmarks.ways import BATCH, Read, States, Way, Work
from engine.models.structure import find_blocks


def batched(prepare: Callable[[Work], Read]) -> Callable[[Work], Read]:
    """Do for any number of texts what is written for one batch."""
    return wraps(prepare)(lambda work: work.in_batches(prepare(work)))


@batched
def with_repeng(work: Work) -> Read:
    """`batched_get_hiddens`, with which it reads what it makes its vectors of."""
    extract: Any = import_module("repeng.extract")

    def read(texts: list[str]) -> States:
        found = extract.batched_get_hiddens(work.model, work.tokenizer, texts, work.layers, BATCH)
        return {layer: torch.from_numpy(states)[:, None] for layer, states in found.items()}

    return read


@batched
def with_steering_vectors(work: Work) -> Read:
    """`record_activations` around the model, without the copies that it makes unless told."""
    steering_vectors: Any = import_module("steering_vectors")

    def read(texts: list[str]) -> States:
        batch = work.encode(texts)
        options = {"layer_nums": work.layers, "clone_activations": False}
        with steering_vectors.record_activations(work.model, **options) as recorded:
            work.model(**batch, use_cache=False)
        return {layer: work.keep(recorded[layer][0], batch["attention_mask"]) for layer in work.layers}

    return read


@batched
def with_transformer_lens(work: Work) -> Read:
    """`run_with_cache` of the wanted names and positions, weights as they are, no block after the last layer wanted."""
    lens: Any = import_module("transformer_lens")
    bridge = lens.TransformerBridge.boot_transformers("model", hf_model=work.model, tokenizer=work.tokenizer)
    names = {layer: f"blocks.{layer}.hook_out" for layer in work.layers}

    def read(texts: list[str]) -> States:
        _, cache = bridge.run_with_cache(
            texts,
            names_filter=list(names.values()),
            stop_at_layer=work.layers[-1] + 1,
            pos_slice=-1 if work.positions == "last" else None,
            padding_side="left",
            prepend_bos=False,
            return_type=None,
        )
        return {layer: cache[name].clone() for layer, name in names.items()}

    return read


@batched
def with_nnsight(work: Work) -> Read:
    """A trace that stops after the last layer wanted. It pads on the left."""
    nnsight: Any = import_module("nnsight")
    path = find_blocks(work.model).path
    traced = nnsight.TransformersModel(work.model, task="text-generation", tokenizer=work.tokenizer)
    blocks = traced.get(path)
    kept = slice(-1, None) if work.positions == "last" else slice(None)

    def read(texts: list[str]) -> States:
        found = {}
        with traced.trace(texts) as tracer:
            for layer in work.layers:
                found[layer] = blocks[layer].output[:, kept].clone().save()
            tracer.stop()
        return found

    return read


@batched
def with_interp_engine(work: Work) -> Read:
    """`capture` with its backend for transformers, the one that does without CUDA."""
    interp_engine: Any = import_module("interp_engine")
    model = interp_engine.EagerModel("model", hf_model=work.model, tokenizer=work.tokenizer)
    points = {layer: interp_engine.Address("resid_post", layer) for layer in work.layers}

    def read(texts: list[str]) -> States:
        batch = work.encode(texts)
        cache = interp_engine.capture(
            model, batch["input_ids"], list(points.values()), attention_mask=batch["attention_mask"]
        )
        return {layer: work.keep(cache[point], batch["attention_mask"]) for layer, point in points.items()}

    return read


@batched
def with_lmprobe(work: Work) -> Read:
    """Its local backend, and its pooling for the last token; it loads models from a folder only."""
    backends: Any = import_module("lmprobe.backends")
    pooling: Any = import_module("lmprobe.pooling")
    pool = pooling.pool_last_token if work.positions == "last" else pooling.pool_all
    with tempfile.TemporaryDirectory() as folder:
        work.model.save_pretrained(folder)
        work.tokenizer.save_pretrained(folder)
        backend = backends.LocalBackend(folder, device="cpu", dtype=work.model.dtype)
        backend.model.load_state_dict(work.model.state_dict(), assign=True)  # one copy of the weights, as elsewhere

    def read(texts: list[str]) -> States:
        side_by_side, mask = backend.extract_batch(texts, work.layers)
        states = pool(side_by_side, mask).reshape(len(texts), -1, len(work.layers), work.model.config.hidden_size)
        return {layer: states[:, :, place] for place, layer in enumerate(work.layers)}

    return read


TOOLS = {
    "repeng": Way("batched_get_hiddens", with_repeng, "repeng", "repeng", last_site="final_norm", positions=("last",)),
    "steering_vectors": Way("record_activations", with_steering_vectors, "steering_vectors", "steering-vectors"),
    "transformer_lens": Way("run_with_cache", with_transformer_lens, "transformer_lens", "transformer-lens"),
    "nnsight": Way("trace, stop", with_nnsight, "nnsight", "nnsight"),
    "interp_engine": Way("capture", with_interp_engine, "interp_engine", "interp-engine"),
    "lmprobe": Way("local backend", with_lmprobe, "lmprobe", "lmprobe"),
}
