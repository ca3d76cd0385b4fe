"""Two small image networks: a multilayer perceptron and a convolutional one. Saved as safetensors beside a JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from training.config import Section, suggestion
from training.config.schema import Fraction, ModelConfig, PositiveInt
from training.errors import ConfigError, Problem


class SmallNetworkConfig(Section):
    """Keys of the ``model`` block for `mlp` and `cnn`."""

    hidden_size: PositiveInt = 128
    """Units per hidden layer (mlp), or channels of the first stage (cnn; each stage doubles them)."""
    num_hidden_layers: int = Field(default=2, ge=1, le=8)
    """Hidden layers, or stages."""
    dropout: Fraction = 0.1
    """Dropout before the last layer (cnn) or after every hidden layer (mlp)."""


class Logits(NamedTuple):
    """What a network returns, in the shape of transformers' outputs."""

    logits: Tensor


class SmallNetwork(nn.Module):
    """`pixel_values` (batch, channels, height, width) to logits (batch, classes)."""

    def __init__(self, layers: nn.Sequential, description: dict[str, Any]) -> None:
        super().__init__()
        self.layers = layers
        self.description = description

    def forward(self, pixel_values: Tensor) -> Logits:
        """Logits (batch, classes)."""
        return Logits(self.layers(pixel_values))


def is_small(architecture: str) -> bool:
    """Whether `architecture` is one of ours."""
    return architecture in _BUILDERS


def build_small_network(model: ModelConfig, *, shape: tuple[int, int, int], num_classes: int) -> SmallNetwork:
    """The `mlp` or `cnn` of the model block, for images of `shape` (channels, height, width). Raises ConfigError."""
    try:
        settings = SmallNetworkConfig.model_validate(model.model_extra or {})
    except ValidationError as error:
        raise ConfigError([_problem(detail) for detail in error.errors()]) from error
    description = {
        "architecture": model.architecture,
        "shape": list(shape),
        "num_classes": num_classes,
        **settings.model_dump(),
    }
    return _build(description)


def save_small_network(network: nn.Module, folder: Path) -> None:
    """Write ``model.safetensors`` and ``config.json`` to `folder`."""
    assert isinstance(network, SmallNetwork)
    save_model(network, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(network.description, indent=2), encoding="utf-8")


def load_small_network(folder: Path) -> SmallNetwork:
    """The network that `save_small_network` wrote, in evaluation mode."""
    network = _build(json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")))
    network.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return network.eval()


def _problem(detail: Any) -> Problem:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return Problem(
            place=f"model.{key}", message=f"not a known key{suggestion(key, SmallNetworkConfig.model_fields)}"
        )
    return Problem(place=f"model.{key}", message=f"{detail['msg']}, not {detail['input']!r}")


def _build(description: dict[str, Any]) -> SmallNetwork:
    shape = tuple(description["shape"])
    settings = SmallNetworkConfig.model_validate({key: description[key] for key in SmallNetworkConfig.model_fields})
    layers = _BUILDERS[description["architecture"]](settings, shape, description["num_classes"])
    return SmallNetwork(nn.Sequential(*layers), description)


def _mlp(settings: SmallNetworkConfig, shape: tuple[int, ...], num_classes: int) -> Iterator[nn.Module]:
    yield nn.Flatten()
    width = math.prod(shape)
    for _ in range(settings.num_hidden_layers):
        yield from (nn.Linear(width, settings.hidden_size), nn.ReLU(), nn.Dropout(settings.dropout))
        width = settings.hidden_size
    yield nn.Linear(width, num_classes)


def _cnn(settings: SmallNetworkConfig, shape: tuple[int, ...], num_classes: int) -> Iterator[nn.Module]:
    channels, width = shape[0], settings.hidden_size
    for stage in range(settings.num_hidden_layers):
        width = settings.hidden_size * 2**stage
        yield from (nn.Conv2d(channels, width, 3, padding=1), nn.ReLU())
        if min(shape[1:]) >= 2 ** (stage + 2):
            yield nn.MaxPool2d(2)
        channels = width
    yield from (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(settings.dropout), nn.Linear(width, num_classes))


_BUILDERS = {"mlp": _mlp, "cnn": _cnn}
