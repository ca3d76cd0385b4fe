"""Images are resized, given their channels and normalized as a pretrained network's own file says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from training.errors import DataError
from training.tasks.image_input import FILE, Format, fit_to, input_format, write_input_format

VIT: Format = {
    "image_mean": [0.5, 0.25, 0.0],
    "image_std": [0.5, 0.25, 1.0],
    "size": {"height": 8, "width": 6},
    "image_processor_type": "ViTImageProcessor",
}


def test_grey_images_become_the_network_s_size_channels_and_scale() -> None:
    fitted = fit_to(VIT, np.full((3, 1, 4, 4), 0.75, dtype=np.float32))
    assert fitted.shape == (3, 3, 8, 6)
    assert fitted[2, :, 5, 5].tolist() == pytest.approx([0.5, 2.0, 0.75])


def test_every_chunk_of_many_images_is_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.tasks.image_input.CHUNK", 2)
    pixels = np.random.default_rng(0).random((5, 3, 8, 6), dtype=np.float32)
    fitted = fit_to(VIT, pixels)
    assert fitted[:, 2] == pytest.approx(pixels[:, 2])
    assert fitted[:, 0] == pytest.approx((pixels[:, 0] - 0.5) / 0.5)


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        ({"size": 8}, (8, 8)),
        ({"size": {"shortest_edge": 8}}, (8, 8)),
        ({"size": {"shortest_edge": 9}, "do_center_crop": True, "crop_size": {"height": 8, "width": 8}}, (8, 8)),
        ({"size": 8, "do_resize": False}, (4, 4)),
        ({}, (4, 4)),
    ],
)
def test_each_way_to_write_the_size_is_read(values: Format, shape: tuple[int, int]) -> None:
    assert fit_to(values, np.zeros((1, 3, 4, 4), dtype=np.float32)).shape == (1, 3, *shape)


def test_images_with_other_channels_are_refused() -> None:
    with pytest.raises(DataError, match="4 channels, the pretrained network takes 3"):
        fit_to(VIT, np.zeros((1, 4, 4, 4), dtype=np.float32))


def test_the_format_stays_with_the_network_and_may_be_missing(tmp_path: Path) -> None:
    assert input_format(str(tmp_path)) == {}
    write_input_format(VIT, tmp_path)
    assert json.loads((tmp_path / FILE).read_text()) == VIT
    assert {key: input_format(str(tmp_path))[key] for key in VIT} == VIT
