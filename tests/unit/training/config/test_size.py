"""Sizes of memory as people write them."""

from __future__ import annotations

import json
import math

import pytest

from training.config import JobConfig, Layer, dump_yaml, job_config, parse_layer, parse_size
from training.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24 * 10**9), ("24 GiB", 24 * 2**30), ("1.5MB", 1_500_000), ("512MiB", 2**29), ("7B", 7)],
)
def test_sizes_are_read_with_decimal_and_binary_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["24", "GB", "0GB", "-1GB", "24gb", "24 G", "iB", True, 0, -5, None, math.inf, math.nan]
)
def test_what_is_no_size_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match="is not a size; write 24GB, 24GiB or 512MB"):
        parse_size(text)


@pytest.mark.parametrize("number", [20, 2.5])
def test_a_number_without_a_unit_is_refused_with_the_key_and_what_to_write(number: float) -> None:
    with pytest.raises(ConfigError) as caught:
        job_config(parse_layer(f"distributed:\n  memory_limit: {number}", name="a"))
    told = f"a:2: distributed.memory_limit: {number} has no unit; write {number}GB, or {number}B for bytes"
    assert str(caught.value) == f"{told}, or 'auto' or 'off'"


@pytest.mark.parametrize(("limit", "written"), [("2GiB", "2147483648B"), ("auto", "auto"), ("off", "off")])
def test_a_size_that_was_written_down_is_read_back(limit: str, written: str) -> None:
    config = JobConfig().with_values({"distributed.memory_limit": limit})
    assert job_config(parse_layer(dump_yaml(config.model_dump()), name="a")) == config
    assert json.loads(config.model_dump_json())["distributed"]["memory_limit"] == written


def test_a_limit_is_a_size_or_a_word() -> None:
    assert job_config(parse_layer("distributed: {memory_limit: 2GiB}", name="a")).distributed.memory_limit == 2**31
    assert job_config(Layer()).distributed.memory_limit == "auto"
    assert JobConfig().with_values({"distributed.memory_limit": "off"}).distributed.memory_limit == "off"
    with pytest.raises(ConfigError) as caught:
        job_config(parse_layer("distributed: {memory_limit: lots}", name="a"))
    assert str(caught.value) == (
        "a:1: distributed.memory_limit: 'lots' is not a size; write 24GB, 24GiB or 512MB, or 'auto' or 'off'"
    )
