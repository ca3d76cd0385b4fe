"""Accumulated and cached gradients are those of the whole batch; the cache keeps activations flat."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from training.config.schema import EmbeddingConfig
from training.data import Batch
from training.distributed import RunContext
from training.gradients import backward
from training.layers import checkpoint_activations
from training.tasks.info_nce import PairModel, Sharpness
from training.tasks.task import TrainingModule

WIDTH = 8


class Towers(nn.Module):
    """An encoder of pairs of plain vectors, with dropout and a repeated layer."""

    def __init__(self, dropout: float, inner: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, inner), nn.Tanh(), nn.Dropout(dropout), nn.Linear(inner, WIDTH))
            for _ in range(2)
        )

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        first, second = batch["first"], batch["second"]
        for layer in self.layers:
            first, second = layer(first), layer(second)
        return first, second


def pair_model(dropout: float = 0.0, inner: int = WIDTH, **settings: object) -> PairModel:
    torch.manual_seed(0)
    model = PairModel.__new__(PairModel)
    nn.Module.__init__(model)
    model.encoder = Towers(dropout, inner)  # type: ignore[assignment]
    model.settings = EmbeddingConfig.model_validate({"learn_temperature": True, **settings})
    model.sharpness = Sharpness(model.settings)
    return model.double()


def pairs(count: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(count, WIDTH, dtype=torch.float64, generator=generator) for name in ("first", "second")}


def chunks(batch: Batch, size: int) -> list[Batch]:
    parts = {name: value.split(size) for name, value in batch.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def gradients(model: TrainingModule, batches: list[Batch]) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    torch.manual_seed(2)
    loss = backward(model, model, batches, RunContext.alone(), lambda loss: loss)
    return loss.item(), {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def relative_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(((found[name] - each).norm() / each.norm()).item() for name, each in expected.items())


@pytest.mark.parametrize("size", [1, 3, 4, 6])
@pytest.mark.parametrize("settings", [{}, {"mrl_dims": [2, 8]}])
def test_cached_gradients_are_those_of_the_whole_batch(size: int, settings: dict[str, object]) -> None:
    model, batch = pair_model(**settings), pairs(12)
    expected_loss, expected = gradients(model, [batch])
    loss, found = gradients(model, chunks(batch, size))
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert "sharpness.log" in found
    assert relative_error(found, expected) < 1e-10


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_second_pass_over_a_chunk_draws_the_same_dropout(checkpointed: bool) -> None:
    model, batches = pair_model(dropout=0.5), chunks(pairs(12), 4)
    if checkpointed:
        checkpoint_activations(model)
    _, found = gradients(model, batches)

    model.zero_grad()
    torch.manual_seed(2)  # one graph over all chunks, which draw in the same order
    first, second, sharpness = zip(*(model(batch) for batch in batches), strict=True)
    whole = type(model(batches[0]))(torch.cat(first), torch.cat(second), sharpness[0])
    model.contrast(whole, RunContext.alone()).backward()
    expected = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    assert relative_error(found, expected) < 1e-10


def test_random_numbers_go_on_after_a_cached_step_as_after_one_pass() -> None:
    model, batches = pair_model(dropout=0.5), chunks(pairs(12), 4)
    gradients(model, batches)
    after_cached = torch.rand(1)
    torch.manual_seed(2)
    for batch in batches:
        model(batch)
    assert torch.equal(torch.rand(1), after_cached)


def test_without_the_cache_each_micro_batch_is_contrasted_by_itself() -> None:
    model, batch = pair_model(), pairs(12)
    whole, _ = gradients(model, [batch])
    model.cache_gradients = False
    alone, _ = gradients(model, chunks(batch, 4))
    assert alone < whole - 0.5  # of 4 candidates instead of 12


@contextmanager
def saved_bytes() -> Iterator[list[int]]:
    """Bytes that autograd keeps for backward: the present and the highest number."""
    counts = [0, 0]

    def free(size: int) -> None:
        counts[0] -= size

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            counts[0] += tensor.nbytes
            counts[1] = max(counts)
            weakref.finalize(self, free, tensor.nbytes)

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        yield counts
    assert counts[0] == 0


def test_activations_stay_flat_while_the_batch_grows_sixteenfold() -> None:
    model = pair_model(inner=2048)

    def peak(batches: list[Batch]) -> int:
        with saved_bytes() as counts:
            gradients(model, batches)
        return counts[1]

    cached, whole = (peak(chunks(pairs(count), 8)) for count in (8, 128)), (peak([pairs(count)]) for count in (8, 128))
    (cached_8, cached_128), (whole_8, whole_128) = cached, whole
    print(f"\nbytes kept for backward: cached {cached_8} -> {cached_128}, whole {whole_8} -> {whole_128}")
    assert whole_128 > 8 * whole_8
    assert cached_128 < 1.1 * cached_8


class Weighted(TrainingModule):
    """A mean over as many items as each batch says."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0]))

    def forward(self, batch: Batch) -> Tensor:
        return (self.scale * batch["values"]).sum() / len(batch["values"])

    def weight(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["values"]))


def test_micro_batches_count_by_their_weight() -> None:
    model = Weighted()
    loss, found = gradients(model, [{"values": torch.tensor([1.0, 2.0, 3.0])}, {"values": torch.tensor([10.0])}])
    assert loss == pytest.approx(4.0)  # the mean of all four, not of two means
    assert found["scale"].item() == pytest.approx(4.0)
