"""A rank that leaves the gradients of one cached contrastive step: ``python cached_gradients.py STRATEGY FILE``.

Alone it takes the whole batch at once, as two ranks in chunks; each rank has its share of the same 32 pairs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModel

from training.config import JobConfig
from training.distributed import RunContext, run_context
from training.gradients import backward
from training.process import leave
from training.tasks.encoders import TextPairEncoder
from training.tasks.info_nce import PairModel

PAIRS, TOKENS, CHUNK = 32, 6, 4


def build(config: JobConfig) -> PairModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    network = AutoModel.from_config(AutoConfig.for_model("bert", vocab_size=50, **sizes, **quiet))
    return PairModel(TextPairEncoder([network], "mean"), config, prepared=Path())


def gradients(strategy: str, context: RunContext, config: JobConfig) -> dict[str, torch.Tensor]:
    model = build(config)
    tokens = torch.randint(0, 50, (PAIRS, 2, TOKENS), generator=torch.Generator().manual_seed(1))
    mine = tokens[context.rank :: context.world_size] if strategy != "none" else tokens
    chunks = mine.split(CHUNK if strategy != "none" else PAIRS)
    batches = [{"input_ids": chunk, "attention_mask": torch.ones_like(chunk)} for chunk in chunks]
    parallel = context.wrap(model)
    backward(model, parallel, batches, context, lambda loss: loss)
    found = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in found.items()}


if __name__ == "__main__":
    strategy, path = sys.argv[1:]
    config = JobConfig.model_validate(
        {
            "task": "embedding",
            "embedding": {"learn_temperature": True},
            "distributed": {"strategy": strategy, "accelerator": "cpu"},
        }
    )
    with run_context(config) as context:
        found = gradients(strategy, context, config)
        if context.is_main:
            torch.save(found, path)
        context.broadcast(True)
    leave(0)
