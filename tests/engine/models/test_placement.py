"""Parsing of memory limits, and their errors."""

import pytest

from engine.errors import RequestError
from engine.models.placement import parse_max_memory, read_max_memory, require_strategy


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("200MB", 200_000_000),
        ("200 mb", 200_000_000),
        ("1.5GB", 1_500_000_000),
        ("16GiB", 16 * 2**30),
        ("4K", 4000),
        ("123", 123),
        (123, 123),
        (0, 0),
    ],
)
def test_sizes(size: int | str, expected: int) -> None:
    assert parse_max_memory({"cpu": size}) == {"cpu": expected}


def test_sizes_are_those_that_accelerate_reads() -> None:
    from accelerate.utils import convert_file_size_to_int

    for size in ("200MB", "16GiB", "3GB", "7KiB", "512MiB"):
        assert parse_max_memory({0: size}) == {0: convert_file_size_to_int(size)}


@pytest.mark.parametrize("size", ["", "much", "-5MB", "5 PB", "MB", "1e9", "nan", -1, True])
def test_invalid_sizes(size: int | str) -> None:
    with pytest.raises(RequestError, match=r"is not a size. Expected: a size such as 200MB or 16GiB"):
        parse_max_memory({"cpu": size})


@pytest.mark.parametrize("place", ["disk", "gpu", "cuda:0", "", -1, True])
def test_invalid_devices(place: int | str) -> None:
    with pytest.raises(
        RequestError, match=r"there is no device .* to hold weights\. Expected: cpu, mps or a GPU index"
    ):
        parse_max_memory({place: 5})


def test_limits_on_the_command_line() -> None:
    assert read_max_memory(["0=20GB", "1=10GB", "200MB"]) == {0: 20 * 10**9, 1: 10 * 10**9, "cpu": 200 * 10**6}
    assert read_max_memory(["cpu=1GB"]) == {"cpu": 10**9}
    assert read_max_memory(["cpu=0", "0=2000000000"]) == {"cpu": 0, 0: 2 * 10**9}
    for wrong, said in (
        (["1GB", "cpu=2GB"], "the memory limit for cpu is given twice"),
        (["=1GB=2"], "there is no device '=1GB' to hold weights"),
        (["cpu="], "is not a size"),
        (["20"], r"a memory limit of 20 bytes holds no weights\. Expected: a size such as 200MB or 16GiB"),
    ):
        with pytest.raises(RequestError, match=said):
            read_max_memory(wrong)


def test_a_device_map_that_does_not_exist() -> None:
    require_strategy("auto")
    with pytest.raises(RequestError, match=r"no device map 'atuo'.*did you mean 'auto'"):
        require_strategy("atuo")
