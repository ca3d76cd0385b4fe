"""Image classification: an MLP or CNN of ours, or any transformers vision model, on a table with an image column."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import nn

from training.config import JobConfig
from training.data import Batch, PreparedData, prepare_once
from training.sources import fingerprint, load_table
from training.tasks.classifier import Classifier
from training.tasks.image_input import fit_to, input_format, read_pixels, write_input_format
from training.tasks.image_networks import build_small_network, is_small, save_small_network
from training.tasks.labels import encode_classes, encode_groups, sample


class ImageClassification:
    """Arrays: ``pixel_values`` (samples, channels, height, width) float32 in 0..1, ``labels`` (samples,) int64."""

    def prepare(self, config: JobConfig) -> PreparedData:
        """Convert the images once per dataset."""
        recipe = {
            "task": "image_classification",
            "source": fingerprint(config.data),
            "data": config.data.model_dump(exclude={"num_workers", "max_length"}),
            "grouped": config.cross_validation.grouped,
            "seed": config.cross_validation.seed,
            "input": input_format(config.model.pretrained) if config.model.pretrained else None,
        }
        return prepare_once(config, recipe, partial(self._build, config))

    def _build(self, config: JobConfig, _: Path) -> PreparedData:
        table = sample(load_table(config.data), config)
        classes, labels = encode_classes(table, config.data)
        pixels = read_pixels(table, config)
        if config.model.pretrained is not None:
            pixels = fit_to(input_format(config.model.pretrained), pixels)
        return PreparedData(
            arrays={"pixel_values": pixels, "labels": labels},
            groups=encode_groups(table, config),
            info={"classes": classes},
        )

    def collate(self, batch: Batch) -> Batch:
        """Images are ready as they are."""
        return batch

    def build_model(self, config: JobConfig, data: PreparedData) -> Classifier:
        """The network for the shape of the images and the classes of the data."""
        classes: list[str] = data.info["classes"]
        channels, height, width = data.arrays["pixel_values"].shape[1:]
        if config.model.pretrained is None and is_small(config.model.architecture):
            small = build_small_network(config.model, shape=(channels, height, width), num_classes=len(classes))
            return Classifier(small, num_classes=len(classes), save=save_small_network)
        return _build_transformers(config, classes, image_size=(height, width), num_channels=channels)


def _build_transformers(config: JobConfig, classes: list[str], **shape: object) -> Classifier:
    from transformers import AutoModelForImageClassification  # seconds, which a small network need not pay

    from training.tasks.pretrained import build_network, class_names, save_network

    pretrained = config.model.pretrained
    required = class_names(classes) | ({} if pretrained else shape)
    network = build_network(AutoModelForImageClassification, config, **required)

    def save(trained: nn.Module, folder: Path) -> None:
        save_network(trained, folder, config.lora)
        if pretrained is not None:
            write_input_format(input_format(pretrained), folder)

    return Classifier(network, num_classes=len(classes), save=save)
