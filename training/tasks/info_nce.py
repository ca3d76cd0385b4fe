"""The contrastive loss on pairs of vectors, and how well one of a pair finds the other."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from training.config import JobConfig
from training.config.schema import EmbeddingConfig
from training.data import Batch
from training.distributed import RunContext, Statistics
from training.tasks.encoders import SETTINGS, ImageTextEncoder, TextPairEncoder
from training.tasks.task import ContrastiveModule, Representations
from training.tasks.tokens import save_tokenizer

MAX_SHARPNESS = 100.0
"""A trained temperature stays above 0.01, as in CLIP (Radford et al. 2021, arXiv 2103.00020)."""
CHUNK = 1024
"""Rows of the similarity matrix that are looked at together when scoring."""
RECALLS = (1, 5, 10)


class Sharpness(nn.Module):
    """The inverse temperature, (1,); trained when the settings say so."""

    keeps_float32 = True

    def __init__(self, settings: EmbeddingConfig) -> None:
        super().__init__()
        start = torch.tensor([-math.log(settings.temperature)])
        self.log = nn.Parameter(start, requires_grad=settings.learn_temperature)

    def forward(self) -> Tensor:
        """At most MAX_SHARPNESS."""
        return self.log.exp().clamp(max=MAX_SHARPNESS)


class PairModel(ContrastiveModule):
    """An encoder of pairs, and InfoNCE with in-batch negatives from all ranks."""

    row_names = ("first", "second", "sharpness")
    summarizes_rows = True

    def __init__(self, encoder: TextPairEncoder | ImageTextEncoder, config: JobConfig, *, prepared: Path) -> None:
        super().__init__()
        self.encoder = encoder
        self.settings, self.lora, self._prepared = config.embedding, config.lora, prepared
        self.sharpness = Sharpness(self.settings)

    def forward(self, batch: Batch) -> Representations:  # type: ignore[override]
        """Both vectors of each sample; not normalized yet, since a prefix of them may be used."""
        first, second = self.encoder(batch)
        return Representations(first, second, self.sharpness())

    def contrast(self, mine: Representations, context: RunContext) -> Tensor:
        """The mean over both directions and all Matryoshka dimensions."""
        firsts, seconds = context.gather(mine.first), context.gather(mine.second)
        return self._loss(mine, firsts, seconds, context.rank * len(mine.first))

    def _loss(
        self, mine: Representations, firsts: Tensor, seconds: Tensor, row: int, reduction: str = "mean"
    ) -> Tensor:
        """Of the pairs that stand from `row` on among all of them: the mean, or with `reduction` "none" of each."""
        losses = [
            info_nce(mine.first[:, :d], seconds[:, :d], mine.sharpness, first_row=row, reduction=reduction)
            + info_nce(mine.second[:, :d], firsts[:, :d], mine.sharpness, first_row=row, reduction=reduction)
            for d in self.settings.mrl_dims or (mine.first.shape[1],)
        ]
        return torch.stack(losses).mean(dim=0) / 2

    def evaluate(self, batch: Batch) -> Statistics:
        """The vectors themselves: each is compared with those of the whole evaluation set."""
        first, second = self.encoder(batch)
        return {"first": first.float(), "second": second.float(), "sharpness": self.sharpness().expand(len(first), 1)}

    def summarize(self, totals: Statistics) -> dict[str, float]:
        """recall_at_1, _5, _10 and mean reciprocal rank (mrr) of the second vector among all, given the first; loss.

        With Matryoshka dimensions also ``mrr_dim_64`` for each of them.
        """
        first, second, sharpness = totals["first"], totals["second"], totals["sharpness"][0]
        ranks = retrieval_ranks(first, second)
        metrics = {f"recall_at_{k}": (ranks <= k).double().mean().item() for k in RECALLS}
        metrics["mrr"] = (1.0 / ranks).mean().item()
        for d in self.settings.mrl_dims or ():
            metrics[f"mrr_dim_{d}"] = (1.0 / retrieval_ranks(first[:, :d], second[:, :d])).mean().item()
        pairs = [(part.start, Representations(first[part], second[part], sharpness)) for part in _chunks(len(first))]
        losses = [self._loss(pair, first, second, start) * len(pair.first) for start, pair in pairs]
        return {**metrics, "loss": torch.stack(losses).sum().item() / len(first)}

    def predictions(self, rows: Statistics) -> Statistics:
        """What the metrics are means of: ``mrr``, ``recall_at_1``, ..., ``loss`` of each sample; not the vectors."""
        first, second, sharpness = rows["first"], rows["second"], rows["sharpness"][0]
        ranks = retrieval_ranks(first, second)
        kept = {f"recall_at_{k}": ranks <= k for k in RECALLS} | {"mrr": (1.0 / ranks).float()}
        for d in self.settings.mrl_dims or ():
            kept[f"mrr_dim_{d}"] = (1.0 / retrieval_ranks(first[:, :d], second[:, :d])).float()
        losses = [
            self._loss(Representations(first[part], second[part], sharpness), first, second, part.start, "none")
            for part in _chunks(len(first))
        ]
        return {**kept, "loss": torch.cat(losses)}

    def save(self, folder: Path) -> None:
        """Write encoder, tokenizer, and how a vector is made of the encoder's output."""
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(self.encoder, ImageTextEncoder):
            self.encoder.network.logit_scale.data.copy_(self.sharpness().log().squeeze())
        self.encoder.save(folder, self.lora)
        save_tokenizer(self._prepared, folder)
        settings = {**self.settings.model_dump(), "temperature": 1.0 / self.sharpness().item()}
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _chunks(count: int) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, count, CHUNK)]


def info_nce(queries: Tensor, keys: Tensor, sharpness: Tensor, *, first_row: int, reduction: str = "mean") -> Tensor:
    """Mean cross-entropy of picking key ``first_row + i`` for query i by cosine similarity; at least float32.

    `queries` (n, d), `keys` (m, d), `sharpness` (1,): the inverse temperature. With `reduction` "none" that of each.
    """
    dtype = torch.promote_types(queries.dtype, torch.float32)
    similarities = normalize(queries.to(dtype), dim=-1) @ normalize(keys.to(dtype), dim=-1).T
    targets = torch.arange(first_row, first_row + len(queries), device=queries.device)
    return cross_entropy(sharpness.to(dtype) * similarities, targets, reduction=reduction)


def retrieval_ranks(queries: Tensor, keys: Tensor) -> Tensor:
    """(n,) the place of key i among all keys, from 1, when they are sorted by cosine similarity to query i.

    Keys as near as the right one count half: a model that maps everything to one point finds nothing by chance.
    """
    queries, keys = normalize(queries, dim=-1), normalize(keys, dim=-1)
    ranks = []
    for start in range(0, len(queries), CHUNK):
        scores = queries[start : start + CHUNK] @ keys.T
        right = scores.diagonal(offset=start).unsqueeze(1)
        ties = (scores == right).sum(dim=1) - 1
        ranks.append(1 + (scores > right).sum(dim=1) + ties / 2)
    return torch.cat(ranks).double()
