"""Transformers models and tokenizers from an architecture block, a folder, an installed package or the hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from training.config import JobConfig, suggestion
from training.config.schema import LoraConfig, ModelConfig
from training.errors import ConfigError, Problem
from training.versions import version_of

_WITH_WEIGHTS = ContextVar("with_weights", default=True)
WEIGHTS = {".safetensors", ".bin", ".pt", ".h5", ".msgpack", ".onnx"}


def locate(reference: str, *, key: str = "pretrained") -> str:
    """The folder or hub name that `reference` means; ``package:NAME/inner/path`` is inside an installed package.

    Raises ConfigError, which blames ``model.KEY``.
    """
    if not reference.startswith("package:"):
        return str(Path(reference).expanduser()) if Path(reference).expanduser().is_dir() else reference
    name, _, inner = reference.removeprefix("package:").partition("/")
    spec = find_spec(name) if name.isidentifier() else None  # of a.b it would import a
    if spec is None or not spec.submodule_search_locations:
        raise _problem(key, f"'{reference}': no package {name} is installed")
    folder = Path(spec.submodule_search_locations[0]) / inner
    if not folder.is_dir():
        raise _problem(key, f"'{reference}': {folder} is not a folder")
    return str(folder)


@contextlib.contextmanager
def reading(reference: str, *, key: str = "pretrained") -> Iterator[str]:
    """The place of `reference`, to read from in the block. Raises ConfigError, which blames ``model.KEY``."""
    place = locate(reference, key=key)
    try:
        yield place
    except OSError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise _problem(
            key, f"'{reference}' cannot be read; give a folder, or a name on a hub in reach ({reason})"
        ) from error


def identify(reference: str) -> str:
    """`reference`, and the state of its files where they are on this machine, but for the weights."""
    folder = Path(locate(reference))
    files = sorted(path for path in folder.glob("*") if path.suffix not in WEIGHTS)
    stamps = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return "\n".join([reference, version_of("tokenizers"), *stamps])


def build_network(auto_class: Any, job: JobConfig, *, encoder: bool = False, **required: Any) -> nn.Module:
    """A network of `auto_class` (an AutoModelFor...): pretrained weights, or an architecture from scratch.

    Keys of the YAML block that the schema does not know go to the transformers configuration; `required` (number of
    classes, ...) too, and wins. Weights are float32, also where they were saved in half precision. With ``lora:`` only
    adapters and a classifier's head are trained. `encoder` drops the decoder of a model that has both (T5). Raises
    ConfigError on a key or architecture that transformers does not know.
    """
    network = _build(auto_class, job.model, required)
    if encoder and network.config.is_encoder_decoder:
        network = network.get_encoder()
    if job.lora is None:
        return network
    from training.lora import add_adapters  # two seconds, which other jobs need not pay

    children = {name: child for name, child in network.named_children() if name != network.base_model_prefix}
    head = [name for name, child in children.items() if any(True for _ in child.parameters())]
    return add_adapters(network, job.lora, head=head if "num_labels" in required else [])


def save_network(network: Any, folder: Path, lora: LoraConfig | None) -> None:
    """Write what `build_network` built, for transformers (or, an adapter alone, for peft) to load."""
    if lora is None:
        network.save_pretrained(folder)
        return
    from training.lora import save_adapted

    save_adapted(network, folder, lora)


def _build(auto_class: Any, config: ModelConfig, required: dict[str, Any]) -> PreTrainedModel:
    extra = config.model_extra or {}
    if config.pretrained is not None:
        with reading(config.pretrained) as source:
            return _read(auto_class, source, extra, required)
    try:
        settings = AutoConfig.for_model(config.architecture)
    except ValueError as error:
        raise _problem("architecture", f"transformers has no model type '{config.architecture}'") from error
    _check_keys(extra, settings)
    settings = AutoConfig.for_model(config.architecture, **{**extra, **required})
    try:
        network: PreTrainedModel = auto_class.from_config(settings)
    except ValueError as error:
        raise _problem("architecture", f"{config.architecture} does not fit: {error}") from error
    return network


def _read(auto_class: Any, source: str, extra: dict[str, Any], required: dict[str, Any]) -> PreTrainedModel:
    _check_keys(extra, AutoConfig.from_pretrained(source))
    network: PreTrainedModel
    if _WITH_WEIGHTS.get():
        how = {"dtype": torch.float32, "use_safetensors": True, "ignore_mismatched_sizes": True}
        network = auto_class.from_pretrained(source, **how, **{**extra, **required})
    else:
        settings = AutoConfig.from_pretrained(source, **{**extra, **required})
        network = auto_class.from_config(settings, dtype=torch.float32)  # as above, whatever was published
    return network


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Inside the block, pretrained networks are built but their weights are not read: for a look at their shapes."""
    token = _WITH_WEIGHTS.set(False)
    try:
        yield
    finally:
        _WITH_WEIGHTS.reset(token)


def class_names(classes: list[str]) -> dict[str, Any]:
    """The keys of a classifier's configuration that say what its outputs mean."""
    numbered = dict(enumerate(classes))
    return {"num_labels": len(classes), "id2label": numbered, "label2id": {name: i for i, name in numbered.items()}}


def _check_keys(extra: dict[str, Any], settings: PreTrainedConfig) -> None:
    known = {*settings.to_dict(), *settings.attribute_map}
    problems = [
        Problem(place=f"model.{key}", message=f"not a key of {settings.model_type}{suggestion(key, known)}")
        for key in extra
        if key not in known
    ]
    if problems:
        raise ConfigError(problems)


def _problem(key: str, message: str) -> ConfigError:
    return ConfigError([Problem(place=f"model.{key}", message=message)])
