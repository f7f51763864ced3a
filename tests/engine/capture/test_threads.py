"""Threads that share a model do not capture, stop or change each other's passes."""

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.errors import CaptureError
from engine.models.structure import find_blocks

TEXTS = [f"w{5 + i} w{20 + i} w7 w8 w{30 + i}" for i in range(12)]


@pytest.fixture
def meanwhile() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Repeats a call in another thread until the test ends; an error there fails the test."""
    ended, threads, wrong = threading.Event(), list[threading.Thread](), list[BaseException]()

    def start(work: Callable[[], object]) -> None:
        def repeat() -> None:
            try:
                while not ended.is_set():
                    work()
            except BaseException as error:  # any error must fail the test
                wrong.append(error)

        threads.append(threading.Thread(target=repeat))
        threads[-1].start()

    yield start
    ended.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def states(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str, use_hooks: bool) -> list[Tensor]:
    return list(engine.capture_activations(model, tokenizer, text, use_hooks=use_hooks)["activations"].values())


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


@pytest.mark.parametrize("use_hooks", [False, True])
def test_captures_on_one_model_take_turns(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, use_hooks: bool
) -> None:
    alone = [states(tiny_llama, tiny_tokenizer, text, use_hooks) for text in TEXTS]
    with ThreadPoolExecutor(3) as threads:
        work = [threads.submit(states, tiny_llama, tiny_tokenizer, text, use_hooks) for text in TEXTS * 4]
        found = [one.result() for one in work]
    assert [equal(one, expected) for one, expected in zip(found, alone * 4, strict=True)] == [True] * len(found)


def test_threads_that_bring_a_new_model_check_it_in_turn(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda text: states(tiny_llama, tiny_tokenizer, text, True), TEXTS))
    alone = [states(tiny_llama, tiny_tokenizer, text, True) for text in TEXTS]
    assert all(map(equal, found, alone))


@pytest.mark.parametrize("use_hooks", [False, True])
def test_a_forward_pass_of_another_thread_neither_sees_nor_disturbs_a_capture(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    meanwhile: Callable[[Callable[[], object]], None],
    use_hooks: bool,
) -> None:
    ids = torch.tensor([[40, 41, 42, 43, 44, 45, 46]])
    with torch.no_grad():
        expected = tiny_llama(ids, output_hidden_states=True)
    alone = [states(tiny_llama, tiny_tokenizer, text, use_hooks) for text in TEXTS]

    def run_plainly() -> None:
        with torch.no_grad():
            output = tiny_llama(ids, output_hidden_states=True)
        # Its products may use oneDNN during the capture, which sums in another order.
        torch.testing.assert_close(output.logits, expected.logits, rtol=1e-4, atol=1e-4)
        assert len(output.hidden_states) == len(expected.hidden_states)

    meanwhile(run_plainly)
    for _ in range(5):
        for text, wanted in zip(TEXTS, alone, strict=True):
            assert equal(states(tiny_llama, tiny_tokenizer, text, use_hooks), wanted)


def test_two_wrappers_of_one_decoder_take_turns(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    other = copy.copy(tiny_llama)  # another object with the same submodules
    alone = [states(tiny_llama, tiny_tokenizer, text, True) for text in TEXTS]
    with ThreadPoolExecutor(2) as threads:
        work = [
            threads.submit(states, model, tiny_tokenizer, text, True)
            for text in TEXTS * 2
            for model in (tiny_llama, other)
        ]
        found = [one.result() for one in work]
    expected = [one for one in alone * 2 for _ in range(2)]
    assert all(map(equal, found, expected))


def test_a_model_changed_by_another_thread_during_a_capture_is_refused(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    def change(done: int, _total: int) -> None:
        if done == 1:
            with torch.no_grad():
                find_blocks(tiny_llama).blocks[1].get_submodule("mlp.up_proj").get_parameter("weight").mul_(2)

    with pytest.raises(CaptureError, match="the model was changed during the capture"):
        engine.capture_activations(tiny_llama, tiny_tokenizer, TEXTS, batch_size=1, progress=change)


def test_a_model_trained_by_another_thread_during_a_capture_is_refused(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine.capture_activations(tiny_llama, tiny_tokenizer, "w5")
    block = find_blocks(tiny_llama).blocks[1]
    hook = block.register_forward_pre_hook(lambda _module, _args: tiny_llama.train() and None)
    with pytest.raises(CaptureError, match="put into training mode while it was captured"):
        engine.capture_activations(tiny_llama, tiny_tokenizer, "w5 w6")
    hook.remove()
