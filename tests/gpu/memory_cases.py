"""Trainings whose memory is predicted and measured: ``python -m tests.gpu.memory_cases predict|measure NAME``.

Each in a process of its own: the prediction must not see a GPU, and the measurement should be alone on one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from training.memory import trace_step

BERT = {"model_type": "bert"}
DECODER = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 1024,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "intermediate_size": 2816,
    "use_cache": False,
}
"""About 320 million parameters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One way to train one model."""

    settings: dict[str, object]
    batch: int
    tokens: int
    dtype: torch.dtype | None = None
    checkpointing: bool = False
    lora: bool = False
    cached: bool = False
    """Contrast the whole batch, encoded in chunks (gradient cache)."""

    def build(self) -> nn.Module:
        """On the default device, in training mode."""
        settings = dict(self.settings)
        name = str(settings.pop("model_type"))
        auto = AutoModelForSequenceClassification if name == "bert" else AutoModelForCausalLM
        network = auto.from_config(AutoConfig.for_model(name, **settings))
        if self.checkpointing:
            network.gradient_checkpointing_enable({"use_reentrant": False})
        if self.lora:
            network = get_peft_model(network, LoraConfig(r=8, target_modules="all-linear"))
        return network.train()  # type: ignore[no-any-return]

    def forward_and_backward(self, model: nn.Module) -> None:
        """One batch, padded by a token so that the mask is kept."""
        if self.cached:
            return self._cached(model)
        tokens, mask = self._batch(self.batch)
        labels = tokens[:, 0] if self.settings["model_type"] == "bert" else tokens
        with self._autocast():
            loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
        loss.backward()

    def _cached(self, model: nn.Module) -> None:
        chunks = [self._batch(self.batch // 8) for _ in range(8)]
        with torch.no_grad(), self._autocast():
            vectors = torch.cat([self._encode(model, *chunk) for chunk in chunks]).requires_grad_()
        scores = vectors.float() @ vectors.float().T
        nn.functional.cross_entropy(scores, torch.arange(len(scores), device="cuda")).backward()
        assert vectors.grad is not None
        for chunk, gradient in zip(chunks, vectors.grad.chunk(len(chunks)), strict=True):
            with self._autocast():
                encoded = self._encode(model, *chunk)
            encoded.backward(gradient)

    @staticmethod
    def _encode(model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
        vectors: Tensor = model.base_model(input_ids=tokens, attention_mask=mask).last_hidden_state[:, 0]  # type: ignore[union-attr, operator]
        return vectors

    def _batch(self, size: int) -> tuple[Tensor, Tensor]:
        tokens = torch.zeros(size, self.tokens, dtype=torch.long, device="cuda")
        mask = torch.ones_like(tokens)
        mask[0, -1] = 0
        return tokens, mask

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cuda", self.dtype, enabled=self.dtype is not None)


HALF = torch.bfloat16
CASES: dict[str, Case] = {
    "bert": Case(settings=BERT, batch=16, tokens=256),
    "bert-bf16": Case(settings=BERT, batch=32, tokens=512, dtype=HALF),
    "bert-bf16-small-batch": Case(settings=BERT, batch=4, tokens=128, dtype=HALF),
    "bert-checkpointing": Case(settings=BERT, batch=32, tokens=512, checkpointing=True),
    "bert-bf16-checkpointing": Case(settings=BERT, batch=32, tokens=512, dtype=HALF, checkpointing=True),
    "bert-lora": Case(settings=BERT, batch=16, tokens=256, lora=True),
    "bert-bf16-lora": Case(settings=BERT, batch=32, tokens=512, dtype=HALF, lora=True),
    "bert-bf16-cached": Case(settings=BERT, batch=256, tokens=128, dtype=HALF, cached=True),
    "decoder": Case(settings=DECODER, batch=4, tokens=512),
    "decoder-bf16": Case(settings=DECODER, batch=8, tokens=512, dtype=HALF),
    "decoder-bf16-checkpointing": Case(settings=DECODER, batch=8, tokens=512, dtype=HALF, checkpointing=True),
    "decoder-bf16-lora": Case(settings=DECODER, batch=8, tokens=512, dtype=HALF, lora=True),
    "decoder-bf16-lora-checkpointing": Case(
        settings=DECODER, batch=8, tokens=512, dtype=HALF, lora=True, checkpointing=True
    ),
}


def build_optimizer(model: nn.Module) -> Optimizer:
    """AdamW on what is trained, as the project's."""
    return AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)


def predict(case: Case) -> int:
    """Bytes, found without a GPU."""
    assert not torch.cuda.is_available()
    return trace_step(case.build, build_optimizer, case.forward_and_backward).peak_bytes


def measure(case: Case) -> int:
    """Bytes, as the allocator says after a third step."""
    with torch.device("cuda"):
        model = case.build()
    optimizer = build_optimizer(model)
    for step in range(3):
        if step == 1:
            torch.cuda.reset_peak_memory_stats()
        case.forward_and_backward(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    what: dict[str, Callable[[Case], int]] = {"predict": predict, "measure": measure}
    print(json.dumps({"bytes": what[sys.argv[1]](CASES[sys.argv[2]])}))
