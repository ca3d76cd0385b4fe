"""The repeated layers of real architectures, and what is done to each of them."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from training.config.schema import ModelConfig
from training.layers import checkpoint_activations, compile_layers, repeated_layers
from training.tasks.image_networks import build_small_network

SIZES = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 8}


def network(architecture: str, **settings: Any) -> nn.Module:
    model: nn.Module = AutoModel.from_config(AutoConfig.for_model(architecture, **settings))
    return model


@pytest.mark.parametrize(
    ("architecture", "settings", "layers"),
    [
        ("bert", SIZES, ["BertLayer"] * 3),
        ("gpt2", {"n_embd": 8, "n_layer": 2, "n_head": 2}, ["GPT2Block"] * 2),
        ("llama", {**SIZES, "vocab_size": 50}, ["LlamaDecoderLayer"] * 3),
        ("vit", {**SIZES, "image_size": 8, "patch_size": 4}, ["ViTLayer"] * 3),
        (
            "clip",
            {"text_config": SIZES, "vision_config": {**SIZES, "image_size": 8, "patch_size": 4}},
            ["CLIPEncoderLayer"] * 6,
        ),
        ("t5", {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 2, "num_heads": 2}, ["T5Block"] * 4),
    ],
)
def test_the_layers_of_an_architecture_are_found(
    architecture: str, settings: dict[str, Any], layers: list[str]
) -> None:
    assert [type(layer).__name__ for layer in repeated_layers(network(architecture, **settings))] == layers


def test_a_model_without_repeated_layers_has_none() -> None:
    model = build_small_network(ModelConfig(architecture="mlp"), shape=(1, 8, 8), num_classes=2)
    assert repeated_layers(model) == []
    assert repeated_layers(nn.ModuleList([nn.Linear(1, 1), nn.ReLU()])) == []


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 64), nn.GELU(), nn.Dropout(0.5), nn.Linear(64, 4)) for _ in range(3)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = layer(inputs)
        return inputs


def gradients(model: nn.Module) -> tuple[list[Tensor], int]:
    """Of one backward pass, and the bytes that were kept for it."""
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(torch.ones(16, 4)).square().sum()
        in_forward = kept
    loss.backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None], in_forward


def test_checkpointed_layers_give_the_same_gradients_and_keep_less() -> None:
    plain, checkpointed = Stack(), Stack()
    checkpoint_activations(checkpointed)
    (expected, much), (found, little) = gradients(plain), gradients(checkpointed)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert little < much / 5
    assert list(checkpointed.state_dict()) == list(plain.state_dict())


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler: g++ is not on PATH")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # torch's own
def test_compiled_layers_give_the_same_numbers() -> None:
    plain, compiled = Stack().eval(), Stack().eval()
    compile_layers(compiled)
    torch.testing.assert_close(compiled(torch.ones(16, 4)), plain(torch.ones(16, 4)))
    assert list(compiled.state_dict()) == list(plain.state_dict())
