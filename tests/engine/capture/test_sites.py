"""Every site matches hand-written hooks for some families, and a missing site is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture.selection import LayerSpec
from engine.capture.sites import SITES, available_sites, parse_site, require_site, site_layers
from engine.errors import ModelError, RequestError
from engine.models.description import describe_model
from engine.models.products import onednn_products
from engine.models.shortcuts import ONEDNN_TOLERANCE
from tests.conftest import Loaded, family_called
from tests.engine.stats.captures import provenance
from tests.families import build

PROMPT = "w5 w17 w99 w23 w8 w64 w31"
IDS = [5, 17, 99, 23, 8, 64, 31]


def watch(parts: list[nn.Module], model: PreTrainedModel) -> list[tuple[Tensor, Tensor]]:
    """Inputs and outputs of submodules in a plain forward pass over `IDS`."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def see(part: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            taken = args[0] if args else kwargs.get("hidden_states")
            seen[part] = (taken.clone(), (output[0] if isinstance(output, tuple) else output).clone())

        return hook

    hooks = [part.register_forward_hook(see(i), with_kwargs=True) for i, part in enumerate(parts)]
    with torch.no_grad():
        model(torch.tensor([IDS]))
    for hook in hooks:
        hook.remove()
    return [seen[i] for i in range(len(parts))]


@pytest.mark.parametrize(
    ("family", "blocks", "attention", "feed_forward"),
    [
        ("llama", "model.layers", "self_attn", "mlp"),
        ("gpt2", "transformer.h", "attn", "mlp"),
        ("gpt_neox", "gpt_neox.layers", "attention", "mlp"),  # parallel attention and MLP
        ("phi", "model.layers", "self_attn", "mlp"),
        ("falcon", "transformer.h", "self_attention", "mlp"),  # writes into the output of its MLP
        ("gemma2", "model.layers", "post_attention_layernorm", "post_feedforward_layernorm"),
        ("opt", "model.decoder.layers", "self_attn", "fc2"),
        ("mixtral", "model.layers", "self_attn", "mlp"),
    ],
)
def test_attention_and_mlp_outputs_are_what_the_block_adds(
    tiny_tokenizer: PreTrainedTokenizerFast, family: str, blocks: str, attention: str, feed_forward: str
) -> None:
    model = build(family_called(family))
    for site, part in (("attn_out", attention), ("mlp_out", feed_forward)):
        plain = watch([model.get_submodule(f"{blocks}.{i}.{part}") for i in range(4)], model)
        captured = engine.capture_activations(model, tiny_tokenizer, PROMPT, site=site)["activations"]
        assert list(captured) == [0, 1, 2, 3]
        for layer, (_, put_out) in enumerate(plain):
            torch.testing.assert_close(captured[layer], put_out.reshape(1, 7, -1), rtol=1e-5, atol=1e-5)


def test_a_block_that_adds_the_stream_inside_its_attention(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """BLOOM's attention and MLP add the residual stream themselves: their own output is the difference."""
    model = build(family_called("bloom"))
    blocks = [model.get_submodule(f"transformer.h.{i}") for i in range(4)]
    stream = [taken for taken, _ in watch(blocks, model)]
    attended = [put_out for _, put_out in watch([block.get_submodule("self_attention") for block in blocks], model)]
    captured = engine.capture_activations(model, tiny_tokenizer, PROMPT, site="attn_out")["activations"]
    for layer in range(4):
        torch.testing.assert_close(captured[layer], attended[layer] - stream[layer], rtol=1e-4, atol=1e-4)


def test_the_sites_of_the_real_model_fit_together(smollm2: Loaded) -> None:
    text = "Tell me a story about a lighthouse keeper."
    read = {site: engine.capture_activations(*smollm2, text, site=site)["activations"] for site in SITES}
    for layer in range(30):
        total = read["resid_pre"][layer] + read["attn_out"][layer] + read["mlp_out"][layer]
        assert torch.equal(total, read["resid_post"][layer])
        assert layer == 29 or torch.equal(read["resid_pre"][layer + 1], read["resid_post"][layer])
    assert (list(read["embed"]), list(read["final_norm"])) == ([0], [29])
    assert torch.equal(read["embed"][0], read["resid_pre"][0])
    receipt = describe_model(smollm2.model).receipt
    ids = torch.tensor([smollm2.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        assert torch.equal(read["embed"][0], smollm2.model.get_input_embeddings()(ids))
        with onednn_products(wanted=(receipt.get("onednn_error") or 0) <= ONEDNN_TOLERANCE):  # as captures do
            final = smollm2.model.get_decoder()(ids).last_hidden_state
        torch.testing.assert_close(read["final_norm"][29], final)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("use_hooks", [False, True])
def test_the_provenance_says_what_was_read_and_how(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, site: str, use_hooks: bool
) -> None:
    data = engine.capture_contrastive_activations(
        tiny_llama, tiny_tokenizer, [PROMPT], ["w7 w8"], use_hooks=use_hooks, site=site
    )
    assert data["provenance"]["site"] == site
    assert data["provenance"]["mode"] == ("hooks" if use_hooks or site != "resid_post" else "whole_pass")
    assert data["layers"] == {"embed": [0], "final_norm": [3]}.get(site, [0, 1, 2, 3])


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("positions", ["last", "mean", "1:3"])
def test_positions_of_a_site_are_slices_of_all_states(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, site: str, positions: str
) -> None:
    cut = {"last": slice(-1, None), "mean": slice(1, None), "1:3": slice(1, 3)}[positions]
    whole = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPT, site=site)["activations"]
    data = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPT, site=site, positions=positions)
    for layer, states in data["activations"].items():
        wanted = whole[layer][:, cut]
        assert torch.equal(states, wanted.double().mean(1, keepdim=True).float() if positions == "mean" else wanted)
        assert states.untyped_storage().nbytes() == states.numel() * 4


@pytest.mark.parametrize(
    ("site", "layers", "expected"),
    [
        ("resid_pre", None, [0, 1, 2, 3]),
        ("attn_out", "1-2", [1, 2]),
        ("embed", None, [0]),
        ("embed", "all", [0]),
        ("final_norm", "all", [3]),
    ],
)
def test_the_layers_of_a_site(site: str, layers: LayerSpec, expected: list[int]) -> None:
    assert parse_site(site, layers) == site
    assert site_layers(site, layers, 4) == expected


@pytest.mark.parametrize("layers", [[0], 3, "recommended", "0", []])
@pytest.mark.parametrize("site", ["embed", "final_norm"])
def test_layers_of_a_site_that_has_none(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, site: str, layers: LayerSpec
) -> None:
    with pytest.raises(RequestError, match=f"the site '{site}' has no layers: .* omit the layers"):
        engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPT, layers, site=site)


def test_a_site_that_does_not_exist(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RequestError, match=f"no site 'resid_mid'. Expected: one of {', '.join(SITES)}"):
        engine.capture_contrastive_activations(tiny_llama, tiny_tokenizer, ["w3"], ["w4"], site="resid_mid")


@pytest.mark.parametrize(
    ("family", "site", "said"),
    [
        ("granite", "attn_out", r"no two submodules .* satisfy resid_pre \+ attn_out \+ mlp_out = resid_post"),
        ("mamba", "mlp_out", r"no two submodules .* satisfy resid_pre \+ attn_out \+ mlp_out = resid_post"),
        ("jamba", "attn_out", "the attention is not the same submodule in every block"),
        ("opt_350m", "final_norm", "no norm was found after its last block"),
    ],
)
def test_a_site_that_a_model_does_not_have(
    tiny_tokenizer: PreTrainedTokenizerFast, family: str, site: str, said: str
) -> None:
    model = build(family_called(family))
    with pytest.raises(ModelError, match=f"this model has no site '{site}': {said}.* Next: read one of resid_post, "):
        engine.capture_activations(model, tiny_tokenizer, PROMPT, site=site)
    for other in available_sites(describe_model(model).receipt):
        assert engine.capture_activations(model, tiny_tokenizer, PROMPT, site=other)["provenance"]["site"] == other


def test_a_feed_forward_under_two_names_is_refused() -> None:
    receipt = provenance()["receipt"]
    receipt["mlp_out"] = None
    assert "mlp_out" not in available_sites(receipt)
    with pytest.raises(ModelError, match="the MLP is not the same submodule in every block"):
        require_site("mlp_out", receipt)
