"""Low-rank adapters beside frozen weights (Hu et al. 2021, arXiv 2106.09685), with peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from training.config.schema import LoraConfig
from training.errors import ConfigError, Problem

ADAPTER = "adapter"
"""Folder of the adapter alone, beside the merged model."""


LINEAR = (nn.Linear, Conv1D)
"""What adapters go beside; GPT-2 has its own kind."""


def add_adapters(network: Any, config: LoraConfig, *, head: list[str]) -> PeftModel:
    """`network` (a transformers model) with its weights frozen and adapters beside the target layers.

    The modules named in `head` have no pretrained weights and are trained whole. Raises ConfigError when no layer has
    a target's name.
    """
    named = config.target_modules if isinstance(config.target_modules, list) else []
    layers = [name for name, _ in network.named_modules()]
    if unknown := [target for target in named if not any(f".{name}".endswith(f".{target}") for name in layers)]:
        raise _no_target(network, f"lora.target_modules {unknown} names no layer of {type(network).__name__}")
    settings = PeftConfig(
        r=config.r,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
        modules_to_save=head or None,
    )
    try:
        adapted: PeftModel = get_peft_model(network, settings)
    except ValueError as error:
        raise _no_target(network, f"lora.target_modules {config.target_modules}: {error}") from error
    return adapted


def save_adapted(network: PeftModel, folder: Path, config: LoraConfig) -> None:
    """The adapter for peft to load; with ``merge``, in a folder of its own beside the whole model."""
    if not config.merge:
        network.save_pretrained(str(folder))
        return
    network.save_pretrained(str(folder / ADAPTER))
    network.merge_and_unload().save_pretrained(folder)


def _no_target(network: nn.Module, reason: str) -> ConfigError:
    names = {name.rpartition(".")[2] for name, module in network.named_modules() if isinstance(module, LINEAR)}
    message = f"{reason}; its linear layers: {', '.join(sorted(names))}"
    return ConfigError([Problem(place="lora.target_modules", message=message)])
