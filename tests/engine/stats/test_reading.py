"""Token readings: equal to a plain forward pass, scaled to the class means, with warnings."""

from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.concepts.chat import render_chat
from engine.errors import CaptureError, RequestError
from engine.records.captures import ActivationData, ContrastData, Message
from engine.records.files import Direction
from engine.stats.direction import extract_direction, extract_directions
from engine.stats.reading import read_text, read_tokens
from tests.conftest import Loaded
from tests.engine.stats.captures import one_prompt, provenance

POSITIVE = [f"w{5 + i} w30 w{60 + i}" for i in range(8)]
NEGATIVE = [f"w{5 + i} w31 w{60 + i}" for i in range(8)]
TEXT = "w9 w30 w77 w31 w12"


@pytest.fixture
def tiny(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> Loaded:
    return Loaded(tiny_llama, tiny_tokenizer)


@pytest.fixture
def directions(tiny: Loaded) -> dict[int, Direction]:
    return extract_directions(contrast_on(tiny))


def contrast_on(loaded: Loaded, **settings: Any) -> ContrastData:
    return engine.capture_contrastive_activations(*loaded, POSITIVE, NEGATIVE, positions="last", **settings)


def plain_values(loaded: Loaded, text: str, direction: Direction) -> list[float]:
    """Expected values from the model's own hidden states; the last layer is excluded, as its state is normed."""
    ids = torch.tensor([loaded.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        states = loaded.model(ids, output_hidden_states=True).hidden_states[direction["layer"] + 1]
    projected = states[0].double() @ direction["vector"].double()
    gap = direction["positive_mean"] - direction["negative_mean"]
    values: list[float] = ((projected - direction["negative_mean"]) / gap).tolist()
    return values


def along_the_first_axis(layer: int = 0, **changes: Any) -> Direction:
    """A direction along the first coordinate of a state."""
    made = Direction(
        layer=layer,
        vector=torch.eye(4)[0],
        negative_mean=0.0,
        positive_mean=1.0,
        method="mean_diff",
        concept="made-up",
        num_pairs=3,
        provenance=provenance(positions="last"),
    )
    return made | changes  # type: ignore[return-value]  # a TypedDict loses its type when merged with a plain one


def tokens_at(values: list[float], layer: int = 0) -> ActivationData:
    """A captured text whose tokens have the given first coordinates."""
    return one_prompt({layer: torch.tensor(values)[:, None] * torch.eye(4)[:1] + torch.eye(4)[1:2] * 7})


@pytest.mark.parametrize("method", ["mean_diff", "pca", "logistic", "lda"])
def test_the_values_are_those_of_a_plain_forward_pass(tiny: Loaded, method: str) -> None:
    directions = extract_directions(contrast_on(tiny), method)
    reading = read_text(*tiny, directions, TEXT)
    assert reading["layers"] == [0, 1, 2, 3]
    assert reading["tokens"] == TEXT.split()
    assert (reading["prompt"], reading["concept"], reading["method"]) == (TEXT, None, method)
    for layer in range(3):
        assert reading["values"][layer] == pytest.approx(plain_values(tiny, TEXT, directions[layer]), abs=1e-3)
    assert len(reading["values"][3]) == 5


@pytest.fixture(scope="module")
def honesty(smollm2: Loaded) -> ContrastData:
    return engine.capture_from_concept(*smollm2, "honesty", layers=[12, 16], max_samples=6, positions="last")


def test_the_default_model_is_read_as_by_a_plain_forward_pass(smollm2: Loaded, honesty: ContrastData) -> None:
    directions = extract_directions(honesty)
    text = "I swear that it is true"
    reading = read_text(*smollm2, directions, text)
    assert reading["tokens"] == ["I", "Ġswear", "Ġthat", "Ġit", "Ġis", "Ġtrue"]
    assert reading["concept"] == "honesty"
    for layer in (12, 16):
        assert reading["values"][layer] == pytest.approx(plain_values(smollm2, text, directions[layer]), abs=1e-2)


def test_the_default_models_captured_prompts_read_0_and_1_on_average(smollm2: Loaded, honesty: ContrastData) -> None:
    directions = extract_directions(honesty)
    for side, expected in ((honesty["negative"], 0.0), (honesty["positive"], 1.0)):
        readings = [read_text(*smollm2, directions, str(prompt["prompt"])) for prompt in side]
        for layer in directions:
            last = [reading["values"][layer][-1] for reading in readings]
            assert sum(last) / len(last) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("site", ["resid_post", "resid_pre", "attn_out", "mlp_out"])
@pytest.mark.parametrize("method", ["mean_diff", "pca", "logistic", "lda"])
def test_the_contrasts_prompts_read_0_and_1_on_average(tiny: Loaded, method: str, site: str) -> None:
    """At every site: only the site of the capture reproduces the class means."""
    directions = extract_directions(contrast_on(tiny, site=site), method)
    for texts, expected in ((NEGATIVE, 0.0), (POSITIVE, 1.0)):
        readings = [read_text(*tiny, directions, text) for text in texts]
        for layer in directions:
            last = [reading["values"][layer][-1] for reading in readings]
            assert sum(last) / len(last) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("site", "layer"), [("embed", 0), ("final_norm", 3)])
def test_sites_without_layers_are_read_under_the_block_they_adjoin(tiny: Loaded, site: str, layer: int) -> None:
    data = engine.capture_contrastive_activations(*tiny, ["w5", "w6"], ["w15", "w16"], site=site)
    direction = extract_direction(data, layer)
    reading = read_text(*tiny, {layer: direction}, TEXT)
    states = engine.capture_activations(*tiny, TEXT, site=site)["activations"][layer][0].double()
    gap = direction["positive_mean"] - direction["negative_mean"]
    expected = (states @ direction["vector"].double() - direction["negative_mean"]) / gap
    assert reading["layers"] == [layer]
    assert reading["values"][layer] == pytest.approx(expected.tolist(), abs=1e-5)


def test_chat_text_goes_through_the_chat_template(smollm2: Loaded, honesty: ContrastData) -> None:
    directions = {12: extract_direction(honesty, 12)}
    rendered = render_chat(smollm2.tokenizer, (Message(role="user", content="Did you take it?"),))
    said = read_text(*smollm2, directions, "Did you take it?", chat=True)
    assert rendered.endswith("<|im_start|>user\nDid you take it?<|im_end|>\n<|im_start|>assistant\n")
    assert said["prompt"] == rendered
    assert said["values"] == read_text(*smollm2, directions, rendered)["values"]
    assert "<|im_start|>" not in read_text(*smollm2, directions, "Did you take it?")["tokens"]


def test_a_reading_sets_the_chat_template_aside_and_has_the_texts_of_tokens(
    smollm2: Loaded, honesty: ContrastData
) -> None:
    directions = {12: extract_direction(honesty, 12)}
    for text in ("Did you take the café's 😀?", "user"):
        said = read_text(*smollm2, directions, text, chat=True)
        kept = [part for place, part in enumerate(said["texts"]) if place not in said["set_aside"]]
        assert "".join(kept).replace("\\xf0\\x9f\\x98\\x80", "😀") == text
    plain = read_text(*smollm2, directions, "Did you take it?")
    assert (plain["texts"], plain["set_aside"]) == (["Did", " you", " take", " it", "?"], [0])


def test_of_a_captured_prompt_only_the_messages_of_the_pair_are_kept(smollm2: Loaded, honesty: ContrastData) -> None:
    directions = {12: extract_direction(honesty, 12)}
    markup = {"<|im_start|>", "<|im_end|>", "system", "user", "ass", "istant", "Sm"}  # and the default system message
    for prompt in (*honesty["positive"], *honesty["negative"]):
        said = read_text(*smollm2, directions, str(prompt["prompt"]), rendered=True)
        kept = [part for place, part in enumerate(said["texts"]) if place not in said["set_aside"]]
        assert not markup & set(kept)
        assert len(kept) > 8
        assert "".join(said["texts"]) == prompt["prompt"]


def test_running_text_along_a_last_token_direction_gets_a_hint(smollm2: Loaded, honesty: ContrastData) -> None:
    directions = {12: extract_direction(honesty, 12)}
    hint = "the direction comes from the last token of each prompt: to read running text, capture with positions=mean"
    assert hint in read_text(*smollm2, directions, "Did you take it?")["warnings"]
    assert hint in read_text(*smollm2, directions, "Did you take it?", chat=True)["warnings"]
    prompt = str(honesty["positive"][0]["prompt"])
    assert hint not in read_text(*smollm2, directions, prompt, rendered=True)["warnings"]


@pytest.mark.parametrize(("positions", "hinted"), [("mean", False), ("mean:0:", False), ("all", True), ("-1:", True)])
def test_the_hint_depends_on_the_positions_of_the_capture(tiny: Loaded, positions: str, hinted: bool) -> None:
    data = engine.capture_contrastive_activations(*tiny, POSITIVE, NEGATIVE, positions=positions)
    warnings = read_text(*tiny, extract_directions(data), TEXT)["warnings"]
    assert any("positions=mean" in warning for warning in warnings) is hinted


@pytest.mark.parametrize(("positions", "hinted"), [("response", False), ("response:last", True)])
def test_a_direction_from_whole_responses_reads_running_text(tiny: Loaded, positions: str, hinted: bool) -> None:
    data = engine.capture_contrastive_activations(*tiny, POSITIVE, NEGATIVE, respond=3, positions=positions)
    warnings = read_text(*tiny, extract_directions(data), TEXT)["warnings"]
    assert any("positions=mean" in warning for warning in warnings) is hinted


def test_a_reading_has_the_comparison_that_chose_its_method(tiny: Loaded) -> None:
    directions = extract_directions(contrast_on(tiny), "auto", leading=1)
    reading = read_text(*tiny, directions, TEXT)
    assert reading["methods"] == directions[1]["methods"]
    assert reading["method"] == reading["methods"]["best"]
    assert "methods" not in read_text(*tiny, extract_directions(contrast_on(tiny)), TEXT)


def test_a_base_model_reads_chat_text_unchanged(tiny: Loaded, directions: dict[int, Direction]) -> None:
    """The result has a warning about it."""
    reading = read_text(*tiny, directions, TEXT, chat=True)
    assert reading["warnings"].pop(0) == "the model has no chat template: the text was read unchanged"
    assert reading == read_text(*tiny, directions, TEXT)


@pytest.mark.parametrize("begins", ["<s> ", ""])
def test_a_rendered_text_gets_no_extra_special_tokens(
    tiny: Loaded, directions: dict[int, Direction], begins: str
) -> None:
    """As in the capture of the contrast, whose prompts went through the same template."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=type(tiny.tokenizer.backend_tokenizer).from_str(tiny.tokenizer.backend_tokenizer.to_str()),
        pad_token="<pad>",  # noqa: S106 - a token of text, not a secret
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.chat_template = begins + "{% for message in messages %}w50 {{ message.content }} w51{% endfor %}"
    expected = [*begins.split(), "w50", "w9", "w51"]
    assert read_text(tiny.model, tokenizer, directions, "w9")["tokens"] == ["<s>", "w9"]
    assert read_text(tiny.model, tokenizer, directions, "w9", chat=True)["tokens"] == expected


def test_a_chosen_layer_leads_and_else_the_middle_one(tiny: Loaded, directions: dict[int, Direction]) -> None:
    assert read_text(*tiny, directions, TEXT)["leading"] == 2
    assert read_text(*tiny, directions, TEXT, leading=0)["leading"] == 0
    few = {layer: directions[layer] for layer in (3, 1, 0)}
    assert read_text(*tiny, few, TEXT)["leading"] == 1
    assert read_text(*tiny, few, TEXT)["layers"] == [0, 1, 3]


def test_a_layer_without_a_direction_cannot_lead(tiny: Loaded, directions: dict[int, Direction]) -> None:
    with pytest.raises(RequestError, match=r"no direction at layer 9\. Expected: one of \[0, 1, 2, 3\]"):
        read_text(*tiny, directions, TEXT, leading=9)


@pytest.mark.parametrize("chat", [False, True])
def test_an_empty_text_is_refused(tiny: Loaded, directions: dict[int, Direction], chat: bool) -> None:
    with pytest.raises(CaptureError, match="empty"):
        read_text(*tiny, directions, "", chat=chat)


def test_a_text_too_long_is_refused(tiny: Loaded, directions: dict[int, Direction]) -> None:
    with pytest.raises(CaptureError, match="65 tokens"):
        read_text(*tiny, directions, " ".join(["w5"] * 65))


def test_no_directions_are_refused(tiny: Loaded) -> None:
    with pytest.raises(RequestError, match="there are no directions to project on"):
        read_text(*tiny, {}, TEXT)


def test_directions_of_another_model_are_refused(tiny: Loaded, directions: dict[int, Direction]) -> None:
    foreign = {layer: direction | {"provenance": provenance()} for layer, direction in directions.items()}
    with pytest.raises(
        RequestError, match=r"come from someone/some-model \(width 32\), but the model is .* \(width 32\)"
    ):
        read_text(*tiny, foreign, TEXT)


def test_directions_of_another_width_are_refused_even_of_unknown_origin(tiny: Loaded) -> None:
    with pytest.raises(RequestError, match=r"an unknown model \(width 4\).*capture the contrast with this model"):
        read_text(*tiny, {0: along_the_first_axis(provenance=None)}, TEXT)


def test_directions_of_unknown_origin_are_read_with_a_warning(tiny: Loaded, directions: dict[int, Direction]) -> None:
    for direction in directions.values():
        direction["provenance"] = None
    warnings = read_text(*tiny, directions, TEXT)["warnings"]
    assert "the directions have no provenance: they may come from another model" in warnings


def test_the_same_model_in_another_dtype_is_read_with_a_warning(tiny: Loaded, directions: dict[int, Direction]) -> None:
    assert not any("float" in warning for warning in read_text(*tiny, directions, TEXT)["warnings"])
    for direction in directions.values():
        assert direction["provenance"] is not None
        direction["provenance"] = direction["provenance"] | {"dtype": "bfloat16"}
    warnings = read_text(*tiny, directions, TEXT)["warnings"]
    assert any("dtype: bfloat16 there, float32 here" in warning for warning in warnings)


def test_a_captured_text_is_scaled_to_the_class_means() -> None:
    direction = along_the_first_axis(negative_mean=2.0, positive_mean=6.0)
    reading = read_tokens(tokens_at([2.0, 6.0, 4.0, 0.0]), {0: direction})
    assert reading["values"] == {0: [0.0, 1.0, 0.5, -0.5]}
    assert (reading["tokens"], reading["leading"]) == (["w0", "w1", "w2", "w3"], 0)
    assert (reading["prompt"], reading["concept"], reading["method"]) == ("made up", "made-up", "mean_diff")


@pytest.mark.parametrize(
    ("values", "warned"),
    [
        ([40.0, 0.0, 1.0, 0.5, 40.0], False),
        ([40.0, 0.0, 1.0, -30.0, 40.0], False),
        ([40.0, -1.0, 2.0, -1.0, 40.0, -40.0], False),
        ([0.5, 0.5, -1.1, 2.1], True),
        ([-50.0, -60.0], True),
        ([40.0], True),
    ],
    ids=["one of four", "half", "at the edge", "two of three", "all", "only the first"],
)
def test_a_warning_appears_only_if_most_tokens_are_far_outside(values: list[float], warned: bool) -> None:
    """Far is more than one class gap beyond either class mean; the first token does not count."""
    warnings = read_tokens(tokens_at(values), {0: along_the_first_axis()})["warnings"]
    assert len(warnings) == warned
    if warned:
        assert "most tokens project far outside both classes at layer 0" in warnings[0]
        assert "(positions last)" in warnings[0]


def test_the_warning_is_that_of_the_leading_layer_and_comes_after_others() -> None:
    data = tokens_at([5.0, 5.0])
    data["activations"][1] = data["activations"][0] / 10
    directions = {layer: along_the_first_axis(layer) for layer in (0, 1)}
    assert read_tokens(data, directions, leading=1, warnings=["first"])["warnings"] == ["first"]
    far = read_tokens(data, directions, leading=0, warnings=["first"])["warnings"]
    assert far[0] == "first"
    assert "at layer 0" in far[1]
