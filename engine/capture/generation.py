"""Follow the generation settings of a model: how it samples, where a response ends, and what is refused."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from engine.errors import RequestError
from engine.models.adapters import inner_model
from engine.models.forward import cache_name

if TYPE_CHECKING:
    from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}  # where a model sets none; transformers has the same


def require_settings(model: PreTrainedModel) -> None:
    """Refuse generation settings that need more than the model, stop at texts, or choose tokens in another way.

    Raises:
        RequestError: The model has such a setting.
    """
    for name in (
        *("stop_strings", "prompt_lookup_num_tokens", "assistant_early_exit"),
        *("penalty_alpha", "dola_layers", "constraints", "force_words_ids"),
    ):
        if getattr(model.generation_config, name, None):
            raise RequestError(
                f"the model's generation settings have {name}, which responses cannot follow",
                next_step=f"load the model in Python, and set model.generation_config.{name} = None",
            )


def places_tokens(model: PreTrainedModel) -> bool:
    """Whether responses do not depend on padding before the prompt.

    The model must take the positions of tokens, and no generation setting may count or compare padded tokens. A
    repetition penalty does not: padding repeats the first token of the prompt.
    """
    settings: Any = model.generation_config
    reads_padding = settings.no_repeat_ngram_size or settings.min_length or settings.guidance_scale
    reads_padding = reads_padding or settings.forced_bos_token_id is not None
    return not reads_padding and "position_ids" in inspect.signature(inner_model(model).forward).parameters


def sampling_settings(model: PreTrainedModel) -> dict[str, float]:
    """The temperature, top-k and top-p with which a model samples: its own, else 1.0, 50 and 1.0.

    Example:
        >>> sampling_settings(model)["top_k"]
        50
    """
    own: dict[str, Any] = {name: getattr(model.generation_config, name, None) for name in _SAMPLING}
    return {name: default if own[name] is None else own[name] for name, default in _SAMPLING.items()}


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokens that end a response: those of the model, else of the tokenizer."""
    settings: Any = model.generation_config
    named = tokenizer.eos_token_id if settings.eos_token_id is None else settings.eos_token_id
    return [] if named is None else [named] if isinstance(named, int) else list(named)


def generation_settings(model: PreTrainedModel, ends: list[int], limit: int, *, sample: bool) -> GenerationConfig:
    """The settings of a model for one text per prompt, as a tensor of token ids.

    Args:
        model: The model. Its own settings are not changed.
        ends: Ids of the tokens that end a text, from `end_tokens`.
        limit: Maximum number of new tokens.
        sample: Whether to sample, with `sampling_settings`.
    """
    settings: GenerationConfig = copy.deepcopy(model.generation_config)
    chosen: dict[str, Any] = {
        "max_new_tokens": limit,
        "do_sample": sample,
        "num_beams": 1,
        "num_return_sequences": 1,
        "return_dict_in_generate": False,
        "use_cache": True,
        "cache_implementation": "dynamic",
        "disable_compile": True,
        "pad_token_id": ends[0] if ends else 0,
    }
    if ends:
        chosen["eos_token_id"] = ends
    # Without sampling these have no effect, but transformers warns of a model's own.
    chosen |= sampling_settings(model) if sample else _SAMPLING
    for name, value in chosen.items():
        setattr(settings, name, value)
    return settings


def draw_numbers(seed: int, first: int, prompts: int, limit: int) -> Tensor:
    """Random numbers from 0 to 1, one for each token of each response, `(prompts, limit)`."""
    rows = [np.random.default_rng([seed, number]).random(limit) for number in range(first, first + prompts)]
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, limit)


class Sampler:
    """Chooses a token of each row by its next random number; the other tokens become impossible.

    Args:
        draws: Random numbers of each row, `(rows, tokens)`.
        width: Number of tokens of the padded prompts.
    """

    def __init__(self, draws: Tensor, width: int) -> None:
        self._draws, self._width = draws, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores, `(rows, vocabulary)`, that are finite only for the chosen tokens."""
        precise = torch.float32 if scores.device.type == "mps" else torch.float64
        step = input_ids.shape[1] - self._width
        below = scores.to(precise).softmax(-1).cumsum(-1)
        draws = self._draws[:, step, None].to(scores.device, precise) * below[:, -1:]
        chosen = torch.searchsorted(below, draws, right=True).clamp_(max=scores.shape[1] - 1)  # (rows, 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def generation_loop(cache: DynamicCache | None, sampler: Sampler | None) -> Any:  # noqa: ANN401 - a generation loop
    """Return transformers' own loop that continues a cache, with a sampler after all logits processors.

    `generate` itself would take no cache if a setting of the model asks for another kind, and would put the sampler
    before temperature, top-k and top-p.
    """

    def loop(model: Any, input_ids: Tensor, logits_processor: Any, **options: Any) -> Any:  # noqa: ANN401
        if sampler is not None:
            logits_processor.append(sampler)
        if cache is not None:
            options[cache_name(model.prepare_inputs_for_generation)] = cache
        return model._sample(input_ids, logits_processor=logits_processor, **options)

    return loop
