"""Causal rankings: effects against ones computed by hand, folds, layers, resuming, cancelling and refusals."""

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture.responses import generate_responses
from engine.concepts.text_files import open_prompts
from engine.errors import CaptureError, LayerscopeError, RequestError
from engine.records.captures import ContrastData, Factors
from engine.records.causal import ablation_works, works
from engine.records.results import Ranking
from engine.steering import causal
from engine.steering.causal import candidate_layers
from engine.steering.causal_request import CausalRequest
from engine.steering.fan_out import Conditions, FanOut, Row, Scores
from engine.steering.trials import Design, Trial
from tests.conftest import family_called
from tests.engine.steering.directions import logits_of
from tests.families import build, with_other_positions

LAYER = 1
NAMES = [Factors(template="", persona=f"w{20 + p}", topic=f"w{40 + t}") for p, t in product(range(8), range(8))]
REQUEST = CausalRequest(layers=[LAYER, 2], prompts=16, answer_tokens=4)


def contrast(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> ContrastData:
    """Eight personas with eight topics; a positive prompt has w7, a negative one w8."""
    one, other = ([f"{pair['persona']} {word} {pair['topic']}" for pair in NAMES] for word in ("w7", "w8"))
    return engine.capture_contrastive_activations(model, tokenizer, one, other, factors=NAMES, positions="last")


@pytest.fixture
def data(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> ContrastData:
    return contrast(tiny_llama, tiny_tokenizer)


TOPICS = [pair["topic"] for pair in NAMES]


def ranked(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    data: ContrastData,
    request: CausalRequest = REQUEST,
    **more: Any,
) -> Any:
    return engine.rank_layers_causally(model, tokenizer, data, request, neutral=TOPICS, **more)


def states(data: ContrastData, layer: int) -> tuple[Tensor, Tensor]:
    positive, negative = (
        torch.stack([prompt["activations"][layer][0, -1] for prompt in side]).double()
        for side in (data["positive"], data["negative"])
    )
    return positive, negative


def predicted(model: PreTrainedModel, prompt: list[int], answer: Sequence[int], added: Tensor | None = None) -> Tensor:
    """Log-probabilities at each token of an answer, `(tokens, vocabulary)`, with a vector added to block 1.

    The vector is added to the states that the rest of the model, copied, continues from: no hooks.
    """
    ids = torch.tensor([[*prompt, *answer]])
    if added is None:
        logits = logits_of(model, ids)
    else:
        with torch.no_grad():
            here = model(input_ids=ids, output_hidden_states=True).hidden_states[LAYER + 1]
        rest = copy.deepcopy(model)
        rest.model.layers = rest.model.layers[LAYER + 1 :]
        with torch.no_grad():
            logits = rest(inputs_embeds=here + added.float(), use_cache=False).logits
    return logits[0].double().log_softmax(-1)[len(prompt) - 1 : -1]


def test_effects_and_damage_equal_those_of_a_model_without_its_lower_blocks(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, data: ContrastData
) -> None:
    found = ranked(tiny_llama, tiny_tokenizer, data)
    design = Design.of(data, REQUEST)
    positive, negative = states(data, LAYER)
    norm = float(torch.cat([positive, negative]).norm(dim=1).mean())
    effects, margins, losses, divergences = [], [], [], []  # of all 16 pairs with persona and topic in the same fold
    for fold, pairs in enumerate(design.tested):
        kept = [number for number in range(64) if number in set(design.training[fold].tolist())]
        vector = (positive - negative)[kept].mean(dim=0)
        added = 0.1 * norm * vector / vector.norm()
        for pair in pairs:
            prompts = [[int(token) for token in data[side][pair]["input_ids"][0]] for side in ("positive", "negative")]
            answers = [list(response.ids) for response in generate_responses(tiny_llama, tiny_tokenizer, prompts, 4)]
            if answers[0] == answers[1]:
                continue
            neutral = [int(TOPICS[pair][1:])]
            chances = []  # of each answer: unsteered, with the direction, with its opposite
            for answer in answers:
                plain, *steered = (predicted(tiny_llama, neutral, answer, by) for by in (None, added, -added))
                divergences += [float((plain.exp() * (plain - one)).sum(dim=1).mean()) for one in steered]
                targets = torch.tensor(answer)[:, None]
                chances.append([float(one.gather(1, targets).mean()) for one in (plain, *steered)])
                losses.append(chances[-1][0] - sum(chances[-1][1:]) / 2)
            before, plus, minus = (one - other for one, other in zip(*chances, strict=True))
            margins.append(before)
            effects.append((plus - minus) / 2)
    assert (found["prompts"], found["dropped"]) == (len(effects), 16 - len(effects))
    row = found["layers"][0]
    assert row["layer"] == LAYER
    assert row["effect"] == pytest.approx(sum(effects) / len(effects), abs=2e-5)
    assert row["wrong_way"] == sum(effect < 0 for effect in effects) / len(effects)
    assert row["low"] < row["effect"] < row["high"]
    assert row["damage"] == pytest.approx(sum(divergences) / len(divergences), rel=1e-4)
    assert math.log(row["perplexity"]) == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    assert found["margin"] == pytest.approx(sum(margins) / len(margins), abs=2e-5)
    assert found["candidates"] == "the requested layers"


def test_captured_responses_are_what_the_personas_say(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Greedy responses of the same length give the same measurement as none, at the same states."""
    one, other = ([f"{pair['persona']} {word} {pair['topic']}" for pair in NAMES] for word in ("w7", "w8"))
    plain = engine.capture_contrastive_activations(tiny_llama, tiny_tokenizer, one, other, factors=NAMES, positions=-1)
    responded = engine.capture_contrastive_activations(
        tiny_llama, tiny_tokenizer, one, other, factors=NAMES, positions="response:last", respond=6
    )
    for side in ("positive", "negative"):
        for prompt, states in zip(responded[side], plain[side], strict=True):
            prompt["activations"] = states["activations"]
    expected = ranked(tiny_llama, tiny_tokenizer, plain)["layers"]
    assert ranked(tiny_llama, tiny_tokenizer, responded)["layers"] == expected


def test_nobody_is_tested_with_a_direction_that_has_seen_them(data: ContrastData) -> None:
    design = Design.of(data, REQUEST)
    assert design.held_out == ["persona", "topic"]
    for training, tested in zip(design.training, design.tested, strict=True):
        for name in ("persona", "topic"):
            seen = {NAMES[pair][name] for pair in training.tolist()}
            assert not seen & {NAMES[pair][name] for pair in tested}
            assert tested
            assert seen


def test_permuted_labels_swap_half_of_the_personas_of_every_fold(data: ContrastData) -> None:
    design = Design.of(data, REQUEST)
    signs = design.swaps(3, seed=0)
    assert signs.shape == (3, 64)
    for drawn in signs:
        by_persona = {NAMES[pair]["persona"]: float(sign) for pair, sign in enumerate(drawn)}
        assert all(by_persona[NAMES[pair]["persona"]] == float(sign) for pair, sign in enumerate(drawn))
        assert sum(by_persona.values()) == 0


def planted() -> PreTrainedModel:
    """A model whose block 1 carries w7 and w8 to later tokens along one vector, which the head reads as w90 and w91.

    Its attention looks at all tokens alike; all other blocks pass the stream on unchanged.
    """
    model = build(family_called("llama"))
    plant = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(5)), dim=0)
    with torch.no_grad():
        for weights in (model.model.embed_tokens.weight, model.lm_head.weight):
            weights -= (weights @ plant)[:, None] * plant
        model.model.embed_tokens.weight[7], model.model.embed_tokens.weight[8] = 5 * plant, -5 * plant
        model.lm_head.weight[90], model.lm_head.weight[91] = 4 * plant, -4 * plant
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        attention = model.model.layers[LAYER].self_attn
        attention.q_proj.weight.zero_()
        attention.v_proj.weight[0] = plant
        attention.o_proj.weight[:, 0] = 2 * plant
    return model


def test_a_planted_direction_is_found_and_needed(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = planted()
    data = contrast(model, tiny_tokenizer)
    found = ranked(model, tiny_tokenizer, data, CausalRequest(layers="all", prompts=16, answer_tokens=2))
    assert "left out layers 0: the classes do not differ there" in found["warnings"]
    assert [row["layer"] for row in found["layers"]] == [1, 2, 3]
    for row in found["layers"]:
        assert works(row)
        assert ablation_works(row)
        assert row["p_value"] == pytest.approx(1 / 26)
        assert row["wrong_way"] == 0
        assert row["ablation"] == pytest.approx(1, abs=1e-3)
        assert row["effect"] > 5 * row["random"]


def test_the_same_call_resumes_what_was_interrupted(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, data: ContrastData, tmp_path: Path
) -> None:
    keep = tmp_path / "parts.jsonl"
    whole = ranked(tiny_llama, tiny_tokenizer, data)

    def stop(step: str, done: int, _total: int) -> None:
        if step == "steering" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ranked(tiny_llama, tiny_tokenizer, data, steps=stop, keep=keep)
    saved = [json.loads(line) for line in keep.read_text().splitlines() if line]
    assert len(saved) == 3
    with keep.open("a") as file:
        file.write('{"key": "cut of')
    resumed = ranked(build(family_called("llama")), tiny_tokenizer, data, keep=keep)
    assert [row["effect"] for row in resumed["layers"]] == pytest.approx([row["effect"] for row in whole["layers"]])


def test_a_layer_that_overflows_is_left_out_and_spoils_no_other(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, data: ContrastData
) -> None:
    strong = replace(REQUEST, strength=1)
    expected = ranked(tiny_llama, tiny_tokenizer, data, strong)["layers"]
    for prompt in (*data["positive"], *data["negative"]):
        states = prompt["activations"][3]
        prompt["activations"][3] = states / states.abs().max() * 3e38  # their norm is more than float32 can hold
    found = ranked(tiny_llama, tiny_tokenizer, data, replace(strong, layers=[1, 2, 3]))
    assert [row["effect"] for row in found["layers"]] == pytest.approx([row["effect"] for row in expected])
    assert "left out layers 3: the states overflow there" in found["warnings"]


def test_an_ablation_whose_predictions_are_not_finite_is_not_called_steering(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    data: ContrastData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measure = FanOut.score

    def spoiled(runner: FanOut, row: Row, conditions: Conditions, expected: Tensor) -> Scores:
        scores = measure(runner, row, conditions, expected)
        return Scores(*(values * torch.nan for values in scores)) if conditions.project else scores

    monkeypatch.setattr(causal, "works", lambda _row: True)
    monkeypatch.setattr(FanOut, "score", spoiled)
    with pytest.raises(RequestError, match=r"not finite without the direction.*Next: use another model"):
        ranked(tiny_llama, tiny_tokenizer, data)


@pytest.mark.parametrize("content", [b"\xff\xfe", b'{"key": "x", "log_probs": 1, "divergences": []}', b"[]"])
def test_a_damaged_file_of_parts_is_measured_again(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    data: ContrastData,
    tmp_path: Path,
    content: bytes,
) -> None:
    keep = tmp_path / "parts.jsonl"
    keep.write_bytes(content)
    expected = ranked(tiny_llama, tiny_tokenizer, data)["layers"]
    assert ranked(tiny_llama, tiny_tokenizer, data, keep=keep)["layers"] == expected


def test_parts_that_cannot_be_kept_are_not_kept(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    data: ContrastData,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("")
    assert ranked(tiny_llama, tiny_tokenizer, data, keep=tmp_path / "file" / "parts.jsonl")["layers"]
    assert caplog.text.count("an interruption loses them") == 1


def test_neutral_prompts_must_fit_and_have_tokens(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, data: ContrastData
) -> None:
    for text, message in ((" ".join(["w5"] * 62), "the neutral prompt of pair"), ("", "has no tokens")):
        with pytest.raises(LayerscopeError, match=message):
            engine.rank_layers_causally(tiny_llama, tiny_tokenizer, data, REQUEST, neutral=[text] * len(NAMES))


def test_kept_parts_of_a_changed_model_are_not_used(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, data: ContrastData, tmp_path: Path
) -> None:
    keep = tmp_path / "parts.jsonl"
    before = ranked(tiny_llama, tiny_tokenizer, data, keep=keep)
    assert ranked(tiny_llama, tiny_tokenizer, data, keep=keep)["layers"] == before["layers"]
    with torch.no_grad():
        tiny_llama.model.layers[3].mlp.down_proj.weight.mul_(3)
    after = ranked(tiny_llama, tiny_tokenizer, data, keep=keep)
    fresh = ranked(tiny_llama, tiny_tokenizer, data)
    assert after["layers"] == fresh["layers"] != before["layers"]
    assert not before["warnings"]
    assert any("differs from that of the capture in weights" in warning for warning in after["warnings"])


def test_kept_parts_of_another_configuration_are_not_used(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, data: ContrastData, tmp_path: Path
) -> None:
    other, keep = with_other_positions(tiny_llama), tmp_path / "parts.jsonl"
    before = ranked(tiny_llama, tiny_tokenizer, data, keep=keep)
    after = ranked(other, tiny_tokenizer, data, keep=keep)
    assert after["layers"] == ranked(other, tiny_tokenizer, data)["layers"] != before["layers"]
    assert any("differs from that of the capture in configuration" in warning for warning in after["warnings"])


def ranking_of(*tied: int, best: int) -> Ranking:
    layers = [
        {"layer": layer, "tied": layer in tied, "p_value": 0.01}
        for layer in (best, *(n for n in range(30) if n != best))
    ]
    return {"layers": layers}  # type: ignore[typeddict-item]  # the only fields that are read


def layered(num_layers: int) -> ContrastData:
    return {"layers": [*range(num_layers)], "positive": [{"num_layers": num_layers}]}  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("ranking", "expected", "said"),
    [
        (ranking_of(10, best=10), [9, 10, 11], "the best layer and its neighbours"),
        (ranking_of(10, 12, best=12), [9, 10, 11, 12, 13], "the 2 layers tied with the best and their neighbours"),
        (ranking_of(0, 29, best=0), [0, 1, 28, 29], "the 2 layers tied with the best and their neighbours"),
    ],
    ids=["one", "two", "at the ends"],
)
def test_candidates_are_the_tied_layers_and_their_neighbours(ranking: Ranking, expected: list[int], said: str) -> None:
    assert candidate_layers(layered(30), CausalRequest(), ranking) == (expected, said)


def test_layers_that_may_be_chance_are_candidates_only_if_all_may_be() -> None:
    ranking = ranking_of(5, 10, best=10)
    next(row for row in ranking["layers"] if row["layer"] == 5)["p_value"] = 0.4
    assert candidate_layers(layered(30), CausalRequest(), ranking)[0] == [9, 10, 11]
    for row in ranking["layers"]:
        row["p_value"] = 0.4
    assert candidate_layers(layered(30), CausalRequest(), ranking)[0] == [4, 5, 6, 9, 10, 11]


def test_at_most_twelve_layers_are_tested_unless_told() -> None:
    layers, said = candidate_layers(layered(30), CausalRequest(), ranking_of(*range(5, 25), best=16))
    assert len(layers) == 12
    assert 16 in layers
    assert (layers[0], layers[-1]) == (4, 25)
    assert said == "12 of the 20 layers tied with the best and their neighbours, evenly spaced"
    assert len(candidate_layers(layered(30), CausalRequest(layers="all"), None)[0]) == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0}, "the strength cannot be 0"),
        ({"strength": float("nan")}, "the strength cannot be nan"),
        ({"method": "median"}, "there is no method 'median'"),
        ({"controls": 3}, "controls"),
        ({"prompts": 1}, "prompts"),
        ({"answer_tokens": 0}, "answer tokens"),
        ({"layers": []}, "no layers were requested"),
        ({"ablation": "no"}, "ablation cannot be 'no'"),  # which is true in Python
        ({"seed": 2**70}, "the seed cannot be"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_request_names_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        CausalRequest(**options)


def test_a_neutral_prompt_of_a_file_is_named_by_its_line(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, data: ContrastData, tmp_path: Path
) -> None:
    file = tmp_path / "neutral.txt"
    long = " ".join(["w5"] * 62)
    file.write_text("\n\n".join([f"w{5 + pair % 8}" if pair < 60 else long for pair in range(len(NAMES))]))
    with pytest.raises(CaptureError, match=r"the neutral prompt in .*neutral\.txt, line 12[1357] has 62 tokens"):
        engine.rank_layers_causally(tiny_llama, tiny_tokenizer, data, REQUEST, neutral=open_prompts(file))


def test_pairs_without_topics_need_neutral_prompts(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, data: ContrastData
) -> None:
    with pytest.raises(RequestError, match="no neutral prompts to steer on"):
        engine.rank_layers_causally(tiny_llama, tiny_tokenizer, data, REQUEST)
    with pytest.raises(RequestError, match="there are 2 neutral prompts for 64 pairs"):
        engine.rank_layers_causally(tiny_llama, tiny_tokenizer, data, REQUEST, neutral=["w3", "w4"])


def test_neutral_prompts_that_are_all_alike_are_a_warning(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, data: ContrastData
) -> None:
    found = engine.rank_layers_causally(tiny_llama, tiny_tokenizer, data, REQUEST, neutral=["w3"] * len(NAMES))
    assert "of 16 neutral prompts, all are the same: the effect may not hold for others" in found["warnings"]
    assert not any("neutral" in warning for warning in ranked(tiny_llama, tiny_tokenizer, data)["warnings"])


def test_trials_with_one_template_or_neutral_prompt_count_together(data: ContrastData) -> None:
    data["factors"] = [Factors({**pair, "template": f"t{number % 6}"}) for number, pair in enumerate(NAMES)]
    design = Design.of(data, REQUEST)
    neutral = [number % 7 for number in range(64)]
    trials = [Trial(pair, 0, [neutral[pair]], ([1], [2]), ([3], [4])) for pair in range(64)]
    groups = design.groups_of(trials)
    assert {name: len({*numbers.tolist()}) for name, numbers in groups.items()} == {
        "persona": 8,
        "topic": 8,
        "template": 6,
        "neutral prompt": 7,
    }
    assert groups["template"].tolist() == [pair % 6 for pair in range(64)]
    of_topics = [replace(trial, neutral=[40 + trial.pair % 8]) for trial in trials]
    assert [*design.groups_of(of_topics)] == ["persona", "topic", "template"]  # the topics are the neutral prompts


def test_few_templates_are_a_warning(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, data: ContrastData
) -> None:
    data["factors"] = [Factors({**pair, "template": f"t{number % 3}"}) for number, pair in enumerate(NAMES)]
    found = ranked(tiny_llama, tiny_tokenizer, data)
    assert "few values of template: the effect may not hold for others" in found["warnings"]


def test_few_tested_templates_are_a_warning_though_the_capture_has_many(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, data: ContrastData
) -> None:
    tested = {pair for fold in Design.of(data, REQUEST).tested for pair in fold}
    data["factors"] = [
        Factors({**pair, "template": f"t{number % 2 if number in tested else number % 8}"})
        for number, pair in enumerate(NAMES)
    ]
    found = ranked(tiny_llama, tiny_tokenizer, data)
    assert "few values of template: the effect may not hold for others" in found["warnings"]


def test_one_persona_with_nearly_all_pairs_is_refused(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, data: ContrastData
) -> None:
    """Its interval would be hundreds of nats wide, or so wide that the record cannot hold it."""
    data["factors"] = [Factors({**pair, "persona": "b" if number >= 56 else "a"}) for number, pair in enumerate(NAMES)]
    with pytest.raises(RequestError, match=r"of the \d+ pairs whose personas answer differently have one persona"):
        ranked(tiny_llama, tiny_tokenizer, data, replace(REQUEST, prompts=40))


def test_pairs_that_all_share_a_prompt_are_refused_if_the_others_are_left_out(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    one, other = [f"w{20 + pair} w7" for pair in range(32)], ["w8"] * 24 + [f"w{60 + pair}" for pair in range(8)]
    pairs = engine.capture_contrastive_activations(tiny_llama, tiny_tokenizer, one, other, positions="last")
    for pair in range(24, 32):  # the answers are the same
        pairs["negative"][pair]["input_ids"] = pairs["positive"][pair]["input_ids"]
    with pytest.raises(RequestError, match=r"(\d+) of the \1 pairs whose personas answer differently share a prompt"):
        engine.rank_layers_causally(tiny_llama, tiny_tokenizer, pairs, REQUEST, neutral=["w3"] * 32)


def test_pairs_without_factors_that_share_a_prompt_are_held_out_together(data: ContrastData) -> None:
    del data["factors"]
    for pair in range(0, 64, 2):
        data["negative"][pair]["prompt"] = data["negative"][pair + 1]["prompt"]
    design = Design.of(data, REQUEST)
    assert design.groups["pair"].tolist() == [pair // 2 for pair in range(64)]
    for training, tested in zip(design.training, design.tested, strict=True):
        assert not {pair // 2 for pair in training.tolist()} & {pair // 2 for pair in tested}


def test_another_model_and_another_layer_are_refused(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, data: ContrastData
) -> None:
    with pytest.raises(RequestError, match="layer 3 was not captured"):
        few: Any = {**data, "layers": [0, 1, 2]}
        ranked(tiny_llama, tiny_tokenizer, few, CausalRequest(layers=[3]))
    with pytest.raises(RequestError, match="the directions come from"):
        ranked(build(family_called("gpt2")), tiny_tokenizer, data)


def test_few_pairs_are_refused(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    data = engine.capture_contrastive_activations(tiny_llama, tiny_tokenizer, ["w3 w7", "w4 w7"], ["w3 w8", "w4 w8"])
    with pytest.raises(RequestError, match="2 pairs are too few"):
        engine.rank_layers_causally(tiny_llama, tiny_tokenizer, data, REQUEST, neutral=["w3", "w4"])


def test_permuted_labels_of_a_planted_concept_are_not_found(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """With the two roles of every other persona exchanged, the direction is one of permuted labels."""
    model = planted()
    data = contrast(model, tiny_tokenizer)
    for place, pair in enumerate(NAMES):
        if int(pair["persona"][1:]) % 2:
            data["positive"][place], data["negative"][place] = data["negative"][place], data["positive"][place]
    found = ranked(model, tiny_tokenizer, data, CausalRequest(layers=[1, 2], prompts=16, answer_tokens=2))
    assert not any(works(row) for row in found["layers"])


@pytest.mark.slow
def test_arbitrary_pairs_are_found_in_one_set_of_twenty(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """A hundred sets whose two classes differ by random words: at a true rate of 5%, the standard error is 2.2%."""
    model = build(family_called("llama"))
    wanted = CausalRequest(layers=[1, 2], prompts=16, answer_tokens=2, ablation=False)
    count = 0
    for seed in range(100):
        drawing = torch.Generator().manual_seed(seed)
        few, many = (torch.randint(*span, (len(NAMES),), generator=drawing) for span in ((3, 20), (60, 128)))
        swap = torch.randint(2, (len(NAMES),), generator=drawing).bool()
        one, other = (
            [f"{pair['persona']} w{word} {pair['topic']}" for pair, word in zip(NAMES, words.tolist(), strict=True)]
            for words in (torch.where(swap, many, few), torch.where(swap, few, many))
        )
        data = engine.capture_contrastive_activations(
            model, tiny_tokenizer, one, other, factors=NAMES, positions="last"
        )
        found = ranked(model, tiny_tokenizer, data, wanted)
        count += any(works(row) for row in found["layers"])
    assert count <= 10


def test_personas_that_say_the_same_are_refused(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    one, other = ([f"{pair['persona']} {word} {pair['topic']}" for pair in NAMES] for word in ("w7", "w8"))
    same = ["w5"] * len(NAMES)
    data = engine.capture_contrastive_activations(
        tiny_llama,
        tiny_tokenizer,
        one,
        other,
        factors=NAMES,
        positive_responses=same,
        negative_responses=same,
        positions=2,
    )
    with pytest.raises(RequestError, match="both personas say the same in 16 of 16 pairs"):
        ranked(tiny_llama, tiny_tokenizer, data)


def test_personas_that_say_nothing_are_refused(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """What an instruct model does with a prompt without its chat template: it ends at once."""
    silent = copy.deepcopy(tiny_llama)
    silent.generation_config.eos_token_id = [*range(silent.config.vocab_size)]
    data = contrast(silent, tiny_tokenizer)
    with pytest.raises(
        RequestError, match=r"say nothing in 16 of 16 pairs.*Next: write the prompts in the model's chat"
    ):
        ranked(silent, tiny_tokenizer, data)
