"""Tiny random causal LMs of many families, built offline from their configs.

Every family has width 32, a few blocks and 128 tokens. Sliding windows, chunks and experts are small enough to affect a
prompt of seven tokens. In `FAMILIES`, the output of a block is the residual stream and the input of the next block. In
`REFUSED` it is not, for the reason given with each.
"""

import copy
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCAB = 128
WIDTH = 32
SEED = 0

_TOKENS: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# The names that most families use. Four heads of width 8; two key-value heads, to cover grouped-query attention.
_PLAIN: dict[str, Any] = {
    **_TOKENS,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GROUPED: dict[str, Any] = {**_PLAIN, "num_key_value_heads": 2}
_HEADS: dict[str, Any] = {**_GROUPED, "head_dim": 8}
_RECURRENT: dict[str, Any] = {**_TOKENS, "hidden_size": WIDTH, "num_hidden_layers": 4}
# The names that GPT-2 and its relatives use.
_GPT: dict[str, Any] = {**_TOKENS, "n_embd": WIDTH, "n_layer": 4, "n_head": 4, "n_positions": 64}
# Multi-head latent attention, as in DeepSeek.
_LATENT: dict[str, Any] = {
    **_PLAIN,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_ROUTED: dict[str, Any] = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
}
_EXPERTS: dict[str, Any] = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
_LOCAL_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
# Sparse attention to the top four tokens of an indexer. With few indexer heads, many scores are zero and tied, and the
# batch shape decides which tied tokens are kept. The tests do not target that effect.
_INDEXED: dict[str, Any] = {"index_topk": 4, "index_head_dim": 16, "index_n_heads": 16}
# Mamba-2 mixers: inner width 64 in 8 heads of width 8.
_MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
_DELTA: dict[str, Any] = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_VISION: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
_LINEAR_THEN_FULL = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
_SLIDING_THEN_FULL = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
_CONV_THEN_FULL = ["conv", "full_attention", "conv", "full_attention"]
_MAMBA_THEN_HYBRID = ["mamba", "hybrid", "mamba", "hybrid"]


@dataclass(frozen=True)
class Family:
    """One model family, or a variant of it: its name here and a builder of its tiny config."""

    name: str
    config: Callable[[], PreTrainedConfig]


def _family(name: str, *shared: dict[str, Any], model_type: str | None = None, **settings: Any) -> Family:
    """Make a family. The model type defaults to its name; later settings override earlier ones."""
    merged: dict[str, Any] = {}
    for group in (*shared, settings):
        merged.update(group)
    return Family(name, partial(AutoConfig.for_model, model_type or name, **merged))


FAMILIES: tuple[Family, ...] = (
    # Llama and similar pre-norm families: norm, attention, norm, MLP.
    _family("llama", _GROUPED),
    _family("mistral", _GROUPED, sliding_window=4),
    _family("ministral3", _HEADS),
    _family("qwen2", _GROUPED),
    _family(
        "qwen2_sliding", _GROUPED, model_type="qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=2
    ),
    _family("qwen3", _HEADS),
    _family("smollm3", _GROUPED, no_rope_layer_interval=2),
    _family("starcoder2", _GROUPED, sliding_window=4),
    _family("stablelm", _GROUPED),
    _family("stablelm_parallel", _GROUPED, model_type="stablelm", use_parallel_residual=True, qk_layernorm=True),
    _family("phi3", _GROUPED),
    _family("olmo", _GROUPED),
    _family("granite", _GROUPED, embedding_multiplier=2.0, residual_multiplier=0.5, attention_multiplier=0.3),
    _family("nemotron", _HEADS),
    _family("ernie4_5", _HEADS),
    _family("exaone4", _GROUPED, sliding_window=4, sliding_window_pattern=2),
    _family("hunyuan_v1_dense", _HEADS),
    _family("apertus", _GROUPED),
    _family("arcee", _HEADS),
    _family("seed_oss", _HEADS),
    _family("helium", _HEADS),
    _family("glm", _HEADS),
    _family("glm4", _HEADS),
    _family("bitnet", _GROUPED),
    _family("diffllama", _HEADS),
    _family("doge", _GROUPED),
    _family("persimmon", _PLAIN),
    _family("jais2", _HEADS),
    _family("hyperclovax", _HEADS),
    _family("granite_swa", _GROUPED, sliding_window=4),
    _family("minicpm3", _LATENT),
    _family("youtu", _LATENT),
    _family("nanochat", _GROUPED),
    _family("lfm3", _HEADS, sliding_window=4),
    # Norms after the sublayers, or on both sides of them.
    _family("olmo2", _GROUPED),
    _family("olmo3", _GROUPED, sliding_window=4),
    _family("gemma", _HEADS),
    _family("gemma2", _HEADS, sliding_window=4, query_pre_attn_scalar=8),
    _family("gemma3_text", _HEADS, sliding_window=4, query_pre_attn_scalar=8, layer_types=_SLIDING_THEN_FULL),
    _family(
        "gemma4_text",
        _HEADS,
        sliding_window=4,
        layer_types=_SLIDING_THEN_FULL,
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=8,
    ),
    _family("vaultgemma", _HEADS, sliding_window=4, query_pre_attn_scalar=8),
    _family("modernbert-decoder", _PLAIN, local_attention=4),
    # Parallel attention and MLP.
    _family("phi", _GROUPED),
    _family("gpt_neox", _PLAIN),
    _family("gpt_neox_serial", _PLAIN, model_type="gpt_neox", use_parallel_residual=False),
    _family("gpt_neox_japanese", _PLAIN),
    _family("gptj", _GPT, rotary_dim=4),
    _family("codegen", _GPT, rotary_dim=4),
    _family("falcon", _PLAIN, ffn_hidden_size=64),
    _family(
        "falcon_new", _PLAIN, model_type="falcon", ffn_hidden_size=64, new_decoder_architecture=True, num_kv_heads=2
    ),
    _family(
        "falcon_alibi", _PLAIN, model_type="falcon", ffn_hidden_size=64, alibi=True, parallel_attn=False, bias=True
    ),
    _family("cohere", _GROUPED),
    _family("cohere2", _GROUPED, sliding_window=4, layer_types=_SLIDING_THEN_FULL),
    # A text decoder next to a vision tower with the same number of blocks.
    _family("gemma3", text_config={**_HEADS, "sliding_window": 4}, vision_config=_VISION, mm_tokens_per_image=4),
    # Older families, with their own names for everything.
    _family("gpt2", _GPT),
    _family("gpt_bigcode", _GPT),
    _family(
        "gpt_neo",
        _TOKENS,
        hidden_size=WIDTH,
        num_layers=4,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        window_size=4,
        max_position_embeddings=64,
    ),
    _family("openai-gpt", _GPT),
    _family("ctrl", _GPT, dff=64),
    _family("bloom", _TOKENS, hidden_size=WIDTH, n_layer=4, n_head=4),
    _family("mpt", _TOKENS, d_model=WIDTH, n_layers=4, n_heads=4, max_seq_len=64),
    _family("opt", _PLAIN, ffn_dim=64, word_embed_proj_dim=WIDTH),
    _family("opt_350m", _PLAIN, model_type="opt", ffn_dim=64, word_embed_proj_dim=16, do_layer_norm_before=False),
    _family("xglm", _TOKENS, d_model=WIDTH, num_layers=4, attention_heads=4, ffn_dim=64, max_position_embeddings=64),
    _family("biogpt", _PLAIN),
    _family(
        "bart",
        _TOKENS,
        d_model=WIDTH,
        decoder_layers=4,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        encoder_layers=4,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        max_position_embeddings=64,
        is_decoder=True,
        is_encoder_decoder=False,
    ),
    _family(
        "dbrx",
        _TOKENS,
        d_model=WIDTH,
        n_layers=4,
        n_heads=4,
        max_seq_len=64,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    ),
    # Mixture of experts.
    _family("mixtral", _HEADS, _LOCAL_EXPERTS),
    _family("qwen2_moe", _GROUPED, _EXPERTS, shared_expert_intermediate_size=16),
    _family("qwen3_moe", _HEADS, _EXPERTS),
    _family("olmoe", _GROUPED, _EXPERTS),
    _family("flex_olmo", _GROUPED, _EXPERTS),
    _family("phimoe", _GROUPED, _LOCAL_EXPERTS),
    _family("granitemoe", _GROUPED, _LOCAL_EXPERTS),
    _family("granitemoeshared", _GROUPED, _LOCAL_EXPERTS, shared_intermediate_size=16),
    _family("gpt_oss", _HEADS, _LOCAL_EXPERTS, sliding_window=4),
    _family("jetmoe", _PLAIN, _LOCAL_EXPERTS, num_key_value_heads=2, kv_channels=8),
    _family("minimax", _HEADS, _LOCAL_EXPERTS, layer_types=_LINEAR_THEN_FULL, block_size=4),
    _family("minimax_m2", _HEADS, _LOCAL_EXPERTS),
    _family(
        "llama4_text",
        _HEADS,
        _LOCAL_EXPERTS,
        intermediate_size_mlp=64,
        attention_chunk_size=4,
        no_rope_layer_interval=2,
        interleave_moe_layer_step=2,
    ),
    _family("ernie4_5_moe", _GROUPED, moe_intermediate_size=16, moe_num_experts=4, moe_k=2, moe_num_shared_experts=1),
    _family("hunyuan_v1_moe", _HEADS, num_experts=4, moe_topk=2),
    _family("deepseek_v2", _LATENT, _ROUTED, topk_method="greedy", first_k_dense_replace=1),
    _family("deepseek_v3", _LATENT, _ROUTED, first_k_dense_replace=1),
    _family("deepseek_v32", _LATENT, _ROUTED, _INDEXED, first_k_dense_replace=1, head_dim=8),
    _family("glm4_moe", _HEADS, _ROUTED, first_k_dense_replace=1),
    _family("glm4_moe_lite", _LATENT, _ROUTED),
    _family("glm_moe_dsa", _LATENT, _ROUTED, _INDEXED, head_dim=8),
    _family(
        "longcat_flash",
        _LATENT,
        num_layers=2,
        ffn_hidden_size=64,
        moe_topk=2,
        n_routed_experts=4,
        zero_expert_num=2,
        expert_ffn_hidden_size=16,
        head_dim=8,
    ),
    _family("afmoe", _HEADS, _EXPERTS, sliding_window=4, num_shared_experts=1, global_attn_every_n_layers=2),
    _family("dots1", _HEADS, _ROUTED, first_k_dense_replace=1),
    _family("exaone_moe", _GROUPED, _EXPERTS, sliding_window=4, sliding_window_pattern=2),
    _family("lfm2_moe", _GROUPED, _EXPERTS, num_dense_layers=1, layer_types=_CONV_THEN_FULL),
    _family("mimo_v2_flash", _HEADS, _ROUTED, sliding_window=4, v_head_dim=8),
    _family("cohere2_moe", _HEADS, num_experts=4, num_experts_per_tok=2, sliding_window=4),
    _family("zaya", _HEADS, _EXPERTS, num_experts_per_tok=1, router_hidden_size=16),
    # No attention, or little of it.
    _family("mamba", _RECURRENT, state_size=8),
    _family("falcon_mamba", _RECURRENT, state_size=8),
    _family("mamba2", _RECURRENT, state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=8),
    _family("xlstm", _RECURRENT, num_heads=4, chunk_size=8),
    _family("bamba", _GROUPED, _MAMBA2, attn_layer_indices=[1, 3]),
    _family("falcon_h1", _GROUPED, _MAMBA2, mamba_d_ssm=64),
    _family(
        "granitemoehybrid",
        _GROUPED,
        _LOCAL_EXPERTS,
        _MAMBA2,
        shared_intermediate_size=16,
        layer_types=["mamba", "attention", "mamba", "attention"],
    ),
    _family(
        "jamba",
        _GROUPED,
        mamba_d_state=8,
        mamba_dt_rank=4,
        num_experts=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        use_mamba_kernels=False,
    ),
    _family(
        "zamba",
        _PLAIN,
        num_key_value_heads=4,
        n_mamba_heads=2,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
        layers_block_type=_MAMBA_THEN_HYBRID,
    ),
    _family(
        "zamba2",
        _PLAIN,
        num_key_value_heads=4,
        n_mamba_heads=8,
        mamba_d_state=8,
        chunk_size=8,
        use_mamba_kernels=False,
        adapter_rank=4,
        layers_block_type=_MAMBA_THEN_HYBRID,
    ),
    _family(
        "nemotron_h",
        _HEADS,
        layers_block_type=["mamba", "attention", "mamba", "moe"],
        num_hidden_layers=4,
        ssm_state_size=8,
        mamba_num_heads=8,
        mamba_head_dim=8,
        n_groups=1,
        chunk_size=8,
        use_mamba_kernels=False,
        moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16,
        n_routed_experts=4,
    ),
    _family("lfm2", _GROUPED, block_auto_adjust_ff_dim=False, layer_types=_CONV_THEN_FULL),
    _family(
        "recurrent_gemma", _GROUPED, lru_width=WIDTH, attention_window_size=4, block_types=["recurrent", "attention"]
    ),
    _family("qwen3_next", _HEADS, _EXPERTS, _DELTA, shared_expert_intermediate_size=16, layer_types=_LINEAR_THEN_FULL),
    _family("qwen3_5_text", _HEADS, _DELTA, layer_types=_LINEAR_THEN_FULL),
    _family(
        "qwen3_5_moe_text", _HEADS, _EXPERTS, _DELTA, shared_expert_intermediate_size=16, layer_types=_LINEAR_THEN_FULL
    ),
    _family("olmo_hybrid", _GROUPED, _DELTA, layer_types=_LINEAR_THEN_FULL),
    _family(
        "kimi_linear",
        _LATENT,
        moe_intermediate_size=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        linear_head_dim=8,
        linear_num_heads=4,
        layer_types=_LINEAR_THEN_FULL,
    ),
)

REFUSED: tuple[Family, ...] = (
    # Several parallel residual streams.
    _family(
        "gemma3n_text",
        _HEADS,
        sliding_window=4,
        layer_types=_SLIDING_THEN_FULL,
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        num_kv_shared_layers=0,
    ),
    _family("deepseek_v4", _PLAIN, _ROUTED),
    _family("hy_v4", _LATENT, _ROUTED, _INDEXED, head_dim=16),
    _family(
        "qwen4_exp_text",
        _HEADS,
        _EXPERTS,
        _DELTA,
        shared_expert_intermediate_size=16,
        layer_types=_LINEAR_THEN_FULL,
        hc_count=2,
        hc_lowrank=4,
        ngram_vocab_size_base=64,
        indexer_n_heads=4,
        indexer_kv_heads=1,
        indexer_head_dim=8,
        indexer_budget=4,
        indexer_compress_ratio=2,
    ),
    # Blocks that also read the outputs of earlier blocks, and a final norm that sums them all.
    _family(
        "inkling2_text",
        _HEADS,
        _ROUTED,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=2,
        swa_head_dim=8,
        sliding_window_size=4,
        d_rel=4,
        rel_extent=8,
        unpadded_vocab_size=VOCAB,
        n_layers_per_attn_res_block=2,
    ),
    # Two stacks that alternate, each run several times.
    _family("hrm_text", _PLAIN, head_dim=8),
    # A residual stream that is halved between blocks. The forward pass in eval mode also rescales weights in place.
    _family("rwkv", _RECURRENT, intermediate_size=64, context_length=64, rescale_every=2),
    # Blocks that are skipped when a prompt has no image.
    _family("mllama", text_config={**_GROUPED, "cross_attention_layers": [1]}, vision_config=_VISION),
)

# Families of the fast tier. They cover rotary, learned and ALiBi positions, parallel blocks, norms before and after
# sublayers, sliding windows, experts, state-space and linear-attention blocks with and without attention, and residual
# streams that are scaled or projected.
REPRESENTATIVE = {
    *("llama", "qwen3", "gemma2", "gpt2", "gpt_neox", "phi", "bloom", "granite", "opt_350m"),
    *("mixtral", "mamba", "bamba", "qwen3_next"),
}


def each_of(families: Iterable[Family], fast: Container[str] = REPRESENTATIVE) -> list[Any]:
    """Parametrize a test over families; those outside the fast tier are marked slow."""
    return [
        pytest.param(family, id=family.name, marks=() if family.name in fast else pytest.mark.slow)
        for family in families
    ]


SINCE = {"inkling2_text": "5.23", "lfm3": "5.23"}
"""Versions of transformers that brought a family, where older ones are supported too."""


def build(family: Family) -> PreTrainedModel:
    """Build a family's model in float32 and eval mode, with the same weights every time."""
    if Version(transformers.__version__) < Version(SINCE.get(family.name, "0")):
        pytest.skip(f"transformers {transformers.__version__} does not have {family.name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(family.config(), dtype=torch.float32)
        # Default weights are so small that blocks hardly change the residual stream, and default norms scale by one, so
        # a missing or repeated norm would go unnoticed. Noise on every parameter exposes both.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3))
    model.eval()
    return model


def with_other_positions(model: PreTrainedModel) -> PreTrainedModel:
    """A model with the same weights, whose rotary positions turn at another rate: only the configuration says so."""
    config = copy.deepcopy(model.config)
    config.rope_parameters = dict(config.rope_parameters) | {"rope_theta": 20.0}
    other: PreTrainedModel = type(model)(config)
    other.load_state_dict(model.state_dict())
    other.eval()
    return other
