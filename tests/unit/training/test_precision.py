"""Which number format a device gets, and which of them scale the loss."""

from __future__ import annotations

import pytest
import torch

from training.precision import Name, Precision, choose_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("auto", None), (32, None), ("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)],
)
def test_a_cpu_computes_what_it_is_told_and_auto_is_32(name: Name, dtype: torch.dtype | None) -> None:
    assert choose_precision(name, CPU) == Precision(dtype=dtype, device_type="cpu")


@pytest.mark.parametrize(
    ("name", "has_bfloat16", "dtype"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, None),
        ("bf16-mixed", True, torch.bfloat16),
        ("bf16-mixed", False, torch.float16),
        ("16-mixed", True, torch.float16),
        (32, True, None),
    ],
)
def test_a_gpu_gets_bfloat16_only_when_it_has_it(
    name: Name, has_bfloat16: bool, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    assert choose_precision(name, GPU).dtype == dtype


def test_products_are_in_the_named_format_and_weights_stay() -> None:
    layer = torch.nn.Linear(2, 2)
    with choose_precision("bf16-mixed", CPU).autocast():
        assert layer(torch.ones(1, 2)).dtype is torch.bfloat16
    with choose_precision(32, CPU).autocast():
        assert layer(torch.ones(1, 2)).dtype is torch.float32
    assert layer.weight.dtype is torch.float32


@pytest.mark.parametrize(("name", "scales"), [(32, False), ("bf16-mixed", False), ("16-mixed", True)])
def test_only_float16_scales_the_loss(name: Name, scales: bool) -> None:
    assert choose_precision(name, CPU).scaler().is_enabled() == scales
