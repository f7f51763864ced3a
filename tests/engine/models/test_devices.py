"""Which device a process takes: of several GPUs that of its number, which no machine without GPUs can show for real."""

import pytest
import torch

from engine.errors import RequestError
from engine.main_memory import MainMemory
from engine.models import devices
from engine.models.devices import choose_device, choose_places, running_device

GB = 10**9


def within(monkeypatch: pytest.MonkeyPatch, memory: MainMemory) -> None:
    monkeypatch.setattr(devices, "main_memory", lambda: memory)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that says that it has two, and no container."""
    within(monkeypatch, MainMemory(64 * GB, 40 * GB, limited=False))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    return monkeypatch


def launch(monkeypatch: pytest.MonkeyPatch, local_rank: int) -> None:
    for name, value in (("RANK", local_rank + 8), ("WORLD_SIZE", 16), ("LOCAL_RANK", local_rank)):
        monkeypatch.setenv(name, str(value))


def test_every_process_has_a_gpu_of_its_own(two_gpus: pytest.MonkeyPatch) -> None:
    assert choose_device("auto") == torch.device("cuda:0")
    for local_rank in (0, 1):
        launch(two_gpus, local_rank)
        assert choose_device("auto") == torch.device("cuda", local_rank)


def test_more_processes_than_gpus_are_refused_unless_they_are_told_where_to_run(two_gpus: pytest.MonkeyPatch) -> None:
    launch(two_gpus, 2)
    with pytest.raises(RequestError, match="number 2 from 0, has no GPU of its own: this machine has 2"):
        choose_device("auto")
    assert choose_device("cpu") == torch.device("cpu")
    assert running_device(choose_places("auto", "auto", None)) == torch.device("cuda")


def test_a_model_in_several_places_runs_on_a_gpu_if_one_is_among_them(two_gpus: pytest.MonkeyPatch) -> None:
    assert two_gpus
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert running_device(choose_places("auto", "auto", {"cpu": "1GB"})) == cpu
    assert running_device(choose_places("auto", "auto", {1: "1GB", "cpu": "1GB"})) == cuda
    assert running_device(choose_places("auto", {"model": "disk", "lm_head": "cpu"}, None)) == cpu
    assert running_device(choose_places("auto", {"model": 0, "lm_head": "disk"}, None)) == cuda
    with pytest.raises(RequestError, match=r"there is no GPU 2\. Expected: a number below 2"):
        choose_places("auto", "auto", {2: "1GB"})


def test_in_a_container_weights_take_no_more_of_main_memory_than_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    within(monkeypatch, MainMemory(8 * GB, 2 * GB, limited=True))
    assert choose_places("auto", "auto", None)["max_memory"]["cpu"] == 1.8 * GB
    assert choose_places("auto", "auto", {"cpu": "5GB"})["max_memory"] == {"cpu": 5 * GB}
    within(monkeypatch, MainMemory(64 * GB, 2 * GB, limited=False))
    assert choose_places("auto", "auto", None) == {"device_map": "auto"}
