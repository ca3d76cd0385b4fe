"""The number format of a training: which products are computed in 16 bits, and how small gradients survive."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch.amp import GradScaler

Name = Literal["auto", 32, "bf16-mixed", "16-mixed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """Weights, gradients and optimizer are float32; matrix products are `dtype` (None: float32, too).

    FSDP gathers its weights in `dtype`, so that what is computed from them between products is 16-bit as well.
    """

    dtype: torch.dtype | None = None
    device_type: str = "cpu"

    def autocast(self) -> AbstractContextManager[object]:
        """For forward passes; one block each, because the 16-bit copies of the weights live as long as the block."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device_type, self.dtype)

    def scaler(self) -> GradScaler:
        """Scales the loss when gradients are float16 and could vanish; otherwise it passes everything through."""
        return GradScaler(self.device_type, enabled=self.dtype is torch.float16)


def choose_precision(name: Name, device: torch.device) -> Precision:
    """The precision of that name. `auto` is bf16-mixed on a GPU that computes in it, else 32.

    A GPU without bfloat16 (older than Ampere) gets 16-mixed for bf16-mixed; the guardrails say so.
    """
    has_bfloat16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto":
        name = "bf16-mixed" if device.type == "cuda" and has_bfloat16 else 32
    if name == "bf16-mixed" and not has_bfloat16:
        name = "16-mixed"
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(str(name))
    return Precision(dtype=dtype, device_type=device.type)
