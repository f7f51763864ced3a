"""Run llama.cpp with a control vector, in a process of its own without torch.

Usage: python llama_cpp.py JOBS.json LOGITS.npy

JOBS.json: {"model": FILE.gguf, "prompts": [[id, ...], ...], "runs": [[VECTORS.gguf or null, strength, layer], ...],
"files": [VECTORS.gguf, ...]}.
LOGITS.npy: (runs, prompts, vocabulary), the logits after each prompt; only the vector of that layer acts.
Prints the width that llama.cpp reads from each of the files, -1 if it refuses the file.

The wheel of xllamacpp exports llama.cpp's functions, also those for control vectors that its Python classes lack. The
files are read by the function that llama.cpp's programs use. It is C++: the layouts below are those of this wheel.
"""

import ctypes
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

LOAD = "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"


class Parameters(ctypes.Structure):
    """Parameters that are only passed on; none has more bytes."""

    _fields_ = (("bytes", ctypes.c_char * 1024),)


class Batch(ctypes.Structure):
    _fields_ = (("num_tokens", ctypes.c_int32), ("pointers", ctypes.c_void_p * 6))


class Text(ctypes.Structure):
    """A std::string from before C++11: the address of characters that a length, a capacity and a count precede."""

    _fields_ = (
        ("length", ctypes.c_size_t),
        ("capacity", ctypes.c_size_t),
        ("owners", ctypes.c_int64),
        ("characters", ctypes.c_char * 4096),
    )


class File(ctypes.Structure):
    _fields_ = (("strength", ctypes.c_float), ("path", ctypes.c_void_p))


class Vector(ctypes.Structure):
    """A std::vector."""

    _fields_ = (("begin", ctypes.c_void_p), ("end", ctypes.c_void_p), ("room", ctypes.c_void_p))


class Loaded(ctypes.Structure):
    _fields_ = (("width", ctypes.c_int), ("values", Vector))


def open_library() -> ctypes.CDLL:
    """The functions of llama.cpp in the wheel, with types where the default is wrong."""
    found = importlib.util.find_spec("xllamacpp")
    assert found is not None
    assert found.origin is not None
    library = ctypes.CDLL(str(Path(found.origin).parent / "xllamacpp.abi3.so"), mode=ctypes.RTLD_GLOBAL)
    pointer = ctypes.c_void_p
    for name, returned, taken in (
        ("llama_log_set", None, [pointer, pointer]),
        ("llama_backend_init", None, []),
        ("llama_model_default_params", Parameters, []),
        ("llama_context_default_params", Parameters, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, Parameters]),
        ("llama_init_from_model", pointer, [pointer, Parameters]),
        ("llama_set_n_threads", None, [pointer, ctypes.c_int32, ctypes.c_int32]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", ctypes.c_int32, [pointer]),
        ("llama_batch_get_one", Batch, [pointer, ctypes.c_int32]),
        ("llama_decode", ctypes.c_int32, [pointer, Batch]),
        ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), [pointer, ctypes.c_int32]),
        ("llama_free", None, [pointer]),
        (
            "llama_set_adapter_cvec",
            ctypes.c_int32,
            [pointer, pointer, ctypes.c_size_t, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32],
        ),
        (LOAD, Loaded, [ctypes.POINTER(Vector)]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = returned, taken
    return library


def load_vectors(library: ctypes.CDLL, path: str, strength: float) -> tuple[int, np.ndarray]:
    """Width and values of a control vector; a width of -1 if llama.cpp refuses the file."""
    text = Text(len(path.encode()), 4095, 1000, path.encode())  # many owners: nobody frees it
    file = File(strength, ctypes.addressof(text) + Text.characters.offset)
    begin = ctypes.addressof(file)
    files = Vector(begin, begin + ctypes.sizeof(file), begin + ctypes.sizeof(file))
    loaded = getattr(library, LOAD)(ctypes.byref(files))
    count = ((loaded.values.end or 0) - (loaded.values.begin or 0)) // 4
    if not count:
        return loaded.width, np.empty(0, np.float32)
    return loaded.width, np.ctypeslib.as_array((ctypes.c_float * count).from_address(loaded.values.begin)).copy()


def run(library: ctypes.CDLL, model: int, ids: list[int], vectors: tuple[int, np.ndarray] | None, layer: int) -> Any:
    """The logits after a prompt."""
    context = library.llama_init_from_model(model, library.llama_context_default_params())
    library.llama_set_n_threads(context, 1, 1)
    if vectors is not None:
        width, values = vectors
        given = values.ctypes.data_as(ctypes.c_void_p)
        assert library.llama_set_adapter_cvec(context, given, len(values), width, layer, layer) == 0
    tokens = (ctypes.c_int32 * len(ids))(*ids)
    assert library.llama_decode(context, library.llama_batch_get_one(tokens, len(ids))) == 0
    count = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
    logits = np.ctypeslib.as_array(library.llama_get_logits_ith(context, -1), (count,)).copy()
    library.llama_free(context)
    return logits


def main(jobs: dict[str, Any], target: str) -> None:
    library = open_library()
    silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    library.llama_log_set(ctypes.cast(silent, ctypes.c_void_p), None)
    library.llama_backend_init()
    model = library.llama_model_load_from_file(jobs["model"].encode(), library.llama_model_default_params())
    assert model, "the model does not load"
    logits = []
    for file, strength, layer in jobs["runs"]:
        vectors = load_vectors(library, file, strength) if file else None
        assert vectors is None or vectors[0] > 0, "llama.cpp refuses the control vector"
        logits.append([run(library, model, ids, vectors, layer) for ids in jobs["prompts"]])
    np.save(target, np.array(logits))
    print(json.dumps([load_vectors(library, file, 1.0)[0] for file in jobs["files"]]))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2])
