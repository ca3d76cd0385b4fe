"""Sizes of memory as people write them."""

from __future__ import annotations

import pytest

from training.config import JobConfig, Layer, job_config, parse_layer, parse_size
from training.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24 * 10**9), ("24 GiB", 24 * 2**30), ("1.5MB", 1_500_000), ("512MiB", 2**29), (1000, 1000), ("7B", 7)],
)
def test_sizes_are_read_with_decimal_and_binary_units(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["24", "GB", "0GB", "-1GB", "24gb", "24 G", "iB", True, 0, -5, None, 2.5])
def test_what_is_no_size_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match="is not a size; write 24GB, 24GiB or 512MB"):
        parse_size(text)


def test_a_limit_is_a_size_or_a_word() -> None:
    assert job_config(parse_layer("distributed: {memory_limit: 2GiB}", name="a")).distributed.memory_limit == 2**31
    assert job_config(Layer()).distributed.memory_limit == "auto"
    assert JobConfig().with_values({"distributed.memory_limit": "off"}).distributed.memory_limit == "off"
    with pytest.raises(ConfigError) as caught:
        job_config(parse_layer("distributed: {memory_limit: lots}", name="a"))
    assert str(caught.value) == (
        "a:1: distributed.memory_limit: 'lots' is not a size; write 24GB, 24GiB or 512MB, or 'auto' or 'off'"
    )
