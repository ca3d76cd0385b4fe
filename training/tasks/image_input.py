"""Images as a pretrained network wants them: its size, channels, mean and deviation, from ``preprocessor_config.json``.

Read as plain values, because the image processors of transformers need torchvision. An image of another shape is
stretched to the network's, not cropped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from training.config import JobConfig
from training.errors import DataError
from training.sources import Table

FILE = "preprocessor_config.json"
CHUNK = 256
"""Images converted at a time."""

Format = dict[str, Any]


def read_pixels(table: Table, config: JobConfig) -> np.ndarray:
    """(samples, channels, height, width) float32; bytes are scaled to 0..1 and grey images get their channel."""
    images = [np.asarray(image) for image in table.column(config.data.image_column, key="data.image_column")]
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise DataError(f"images of {config.data.name} differ in shape ({sorted(shapes)[:3]} ...); resize them first")
    pixels = np.stack(images)
    pixels = pixels.astype(np.float32) / 255.0 if pixels.dtype == np.uint8 else pixels.astype(np.float32)
    if pixels.ndim == 3:
        return pixels[:, None]
    return pixels.transpose(0, 3, 1, 2).copy() if pixels.shape[-1] in (3, 4) else pixels


def input_format(reference: str) -> Format:
    """What `reference` (a folder, ``package:...`` or hub name) says of its input; empty when it says nothing."""
    from transformers.image_processing_base import ImageProcessingMixin

    from training.tasks.pretrained import locate

    try:
        values: Format = ImageProcessingMixin.get_image_processor_dict(locate(reference))[0]
    except OSError:  # as a network that was trained here from scratch, on values in 0..1
        return {}
    return values


def write_input_format(values: Format, folder: Path) -> None:
    """Keep the format beside a network that was trained further from it."""
    if values:
        (folder / FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def fit_to(values: Format, pixels: np.ndarray) -> np.ndarray:
    """`pixels` (samples, channels, height, width) in 0..1, resized and normalized. Raises DataError on channels."""
    mean, deviation = _normalization(values, num_channels=pixels.shape[1])
    channels = len(mean)
    if pixels.shape[1] not in (1, channels):
        raise DataError(f"the images have {pixels.shape[1]} channels, the pretrained network takes {channels}")
    height, width = _size(values) or pixels.shape[2:]
    fitted = np.empty((len(pixels), channels, height, width), dtype=np.float32)
    for start in range(0, len(pixels), CHUNK):
        chunk = torch.from_numpy(pixels[start : start + CHUNK]).expand(-1, channels, -1, -1)
        if chunk.shape[2:] != (height, width):
            chunk = interpolate(chunk, (height, width), mode="bilinear", antialias=True)
        fitted[start : start + CHUNK] = (chunk - mean) / deviation
    return fitted


def _normalization(values: Format, *, num_channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation by channel, each (channels, 1, 1)."""
    if "image_mean" not in values or not values.get("do_normalize", True):
        return torch.zeros(num_channels, 1, 1), torch.ones(num_channels, 1, 1)
    mean, deviation = (torch.tensor(values[key], dtype=torch.float32) for key in ("image_mean", "image_std"))
    return mean.reshape(-1, 1, 1), deviation.reshape(-1, 1, 1)


def _size(values: Format) -> tuple[int, int] | None:
    """Height and width, or None when any will do."""
    if not values.get("do_resize", True):
        return None
    size = values.get("crop_size") if values.get("do_center_crop") else None
    size = size or values.get("size")
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        return (size["height"], size["width"]) if "height" in size else (edge, edge) if edge else None
    return (size, size) if size else None
