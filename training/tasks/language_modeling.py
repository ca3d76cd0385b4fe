"""Language modeling: any transformers causal language model on any table with a text column. One text, one sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from training.config import JobConfig
from training.data import Batch, PreparedData, prepare_once
from training.distributed import Statistics
from training.sources import load_table
from training.tasks.labels import encode_groups, sample
from training.tasks.pretrained import build_network, save_network
from training.tasks.task import TrainingModule
from training.tasks.tokens import build_tokenizer, cut_padding, save_tokenizer, text_recipe, token_info, tokenize

IGNORED = -100
"""Target of what is not predicted: padding."""


class LanguageModeling:
    """Arrays: ``input_ids`` and ``attention_mask`` (samples, tokens) int64; a text ends with the end-of-text token."""

    def prepare(self, config: JobConfig) -> PreparedData:
        """Tokenise once per dataset and tokenizer."""
        return prepare_once(config, text_recipe(config), partial(self._build, config))

    def _build(self, config: JobConfig, folder: Path) -> PreparedData:
        table = sample(load_table(config.data), config)
        texts = [str(text) for text in table.column(config.data.text_column, key="data.text_column")]
        tokenizer = build_tokenizer(config, texts, folder)
        ended = [text + _ending(tokenizer) for text in texts]
        return PreparedData(
            arrays=tokenize(tokenizer, ended, max_length=config.data.max_length),
            groups=encode_groups(table, config),
            info=token_info(tokenizer),
        )

    def collate(self, batch: Batch) -> Batch:
        """Cut the padding that no text of this batch needs."""
        return cut_padding(batch)

    def build_model(self, config: JobConfig, data: PreparedData) -> LanguageModel:
        """The architecture with the tokenizer's vocabulary, or pretrained weights."""
        required = {} if config.model.pretrained else data.info
        network = build_network(AutoModelForCausalLM, config, **required)
        assert data.folder is not None
        prepared = data.folder

        def save(trained: nn.Module, folder: Path) -> None:
            save_network(trained, folder, config.lora)
            save_tokenizer(prepared, folder)

        return LanguageModel(network, save=save)


def _ending(tokenizer: PreTrainedTokenizerBase) -> str:
    """The end-of-text token, unless `tokenizer` adds it by itself."""
    adds_it = tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
    return "" if adds_it or tokenizer.eos_token is None else str(tokenizer.eos_token)


class LanguageModel(TrainingModule):
    """A network that returns ``.logits`` of shape (batch, tokens, vocabulary), trained to predict each next token."""

    row_names = ("loss", "accuracy", "weight")

    def __init__(self, network: nn.Module, *, save: Callable[[nn.Module, Path], None]) -> None:
        super().__init__()
        self.network = network
        self._save = save

    def forward(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the predicted tokens."""
        logits, targets = self._predict(batch)
        total = cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        return total / self.weight(batch).clamp(min=1)  # texts of one token predict nothing

    def weight(self, batch: Batch) -> Tensor:
        """The number of predicted tokens."""
        return batch["attention_mask"][:, 1:].sum()

    def evaluate(self, batch: Batch) -> Statistics:
        """``loss_sum``: summed cross-entropy; ``tokens`` predicted; ``hits``: those the model finds most likely.

        Rows: mean loss, share of hits, and number of predicted tokens (``weight``) of each text.
        """
        logits, targets = self._predict(batch)
        is_hit, tokens = logits.argmax(dim=-1) == targets, batch["attention_mask"][:, 1:].sum(dim=1)
        losses = cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        hits, loss = (each.reshape(len(tokens), -1).sum(dim=1) for each in (is_hit, losses))
        return {
            "loss_sum": cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"),
            "tokens": self.weight(batch),
            "hits": is_hit.sum(),
            "loss": loss / tokens.clamp(min=1),  # texts of one token predict nothing
            "accuracy": hits / tokens.clamp(min=1),
            "weight": tokens.int(),
        }

    def summarize(self, totals: Statistics) -> dict[str, float]:
        """Mean loss in nats per token, perplexity, and accuracy of the most likely token."""
        loss = (totals["loss_sum"] / totals["tokens"]).item()
        accuracy = (totals["hits"] / totals["tokens"]).item()
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": accuracy}

    def save(self, folder: Path) -> None:
        """Write network and tokenizer, for transformers to load."""
        folder.mkdir(parents=True, exist_ok=True)
        self._save(self.network, folder)

    def _predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (predictions, vocabulary) and targets (predictions,) of all but each text's first token."""
        logits = self.network(**batch, use_cache=False).logits[:, :-1]
        targets = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)[:, 1:]
        return torch.flatten(logits, 0, 1), torch.flatten(targets)
