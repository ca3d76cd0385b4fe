"""The contrastive loss and the retrieval metrics, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from training.config.schema import EmbeddingConfig
from training.tasks import info_nce as module
from training.tasks.encoders import pool
from training.tasks.info_nce import PairModel, Sharpness, info_nce, retrieval_ranks

AXES = torch.eye(3)


def model(**settings: object) -> PairModel:
    built = PairModel.__new__(PairModel)
    nn.Module.__init__(built)
    built.settings = EmbeddingConfig.model_validate(settings)
    built.sharpness = Sharpness(built.settings)
    return built


def summary(first: Tensor, second: Tensor, **settings: object) -> dict[str, float]:
    return model(**settings).summarize({"first": first, "second": second, "sharpness": torch.ones(len(first), 1)})


def test_the_loss_of_pairs_at_right_angles_is_the_softmax_of_one_and_zeros() -> None:
    expected = math.log(math.e + 2) - 1
    assert info_nce(AXES, AXES, torch.ones(1), first_row=0).item() == pytest.approx(expected)
    assert info_nce(5 * AXES, AXES / 7, torch.ones(1), first_row=0).item() == pytest.approx(expected)  # cosine


def test_queries_of_a_later_rank_find_their_keys_further_down() -> None:
    loss = info_nce(AXES[1:], AXES, torch.full((1,), 50.0), first_row=1)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert info_nce(AXES[1:], AXES, torch.full((1,), 50.0), first_row=0).item() > 10


def test_half_precision_vectors_are_compared_in_float32() -> None:
    assert info_nce(AXES.bfloat16(), AXES.bfloat16(), torch.ones(1), first_row=0).dtype is torch.float32
    assert info_nce(AXES.double(), AXES.double(), torch.ones(1), first_row=0).dtype is torch.float64


def test_a_rank_counts_the_keys_that_are_nearer_and_half_of_those_as_near() -> None:
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert retrieval_ranks(queries, keys).tolist() == [1.0, 3.0, 2.0]
    assert retrieval_ranks(torch.ones(4, 2), torch.ones(4, 2)).tolist() == [2.5] * 4


def test_metrics_of_perfect_and_of_swapped_pairs() -> None:
    perfect = summary(AXES, AXES)
    assert [perfect[name] for name in ("recall_at_1", "recall_at_5", "mrr")] == [1.0, 1.0, 1.0]
    swapped = summary(AXES, AXES[[1, 0, 2]])
    # Two of three find their key among two that are equally far: rank (1 nearer) + 1/2 + 1.
    assert swapped["recall_at_1"] == pytest.approx(1 / 3)
    assert swapped["mrr"] == pytest.approx((1 + 2 / 2.5) / 3)


def test_metrics_do_not_depend_on_the_size_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    first, second = torch.randn(50, 8), torch.randn(50, 8)
    whole = summary(first, second, mrl_dims=[2, 8])
    monkeypatch.setattr(module, "CHUNK", 7)
    assert summary(first, second, mrl_dims=[2, 8]) == pytest.approx(whole)


def test_matryoshka_dimensions_are_scored_and_learned_one_by_one() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(20, 8), torch.randn(20, 8)
    both = summary(first, second, mrl_dims=[2, 8])
    alone = [summary(first[:, :d], second[:, :d]) for d in (2, 8)]
    assert both["loss"] == pytest.approx(sum(each["loss"] for each in alone) / 2)
    assert (both["mrr_dim_2"], both["mrr_dim_8"]) == pytest.approx((alone[0]["mrr"], alone[1]["mrr"]))


@pytest.mark.parametrize(("pooling", "expected"), [("mean", [2.0, 7.5]), ("cls", [1.0, 7.0]), ("last", [3.0, 8.0])])
def test_pooling_sees_no_padding(pooling: str, expected: list[float]) -> None:
    hidden = torch.tensor([[[1.0], [2.0], [3.0], [99.0]], [[7.0], [8.0], [99.0], [99.0]]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    assert pool(hidden, mask, pooling).flatten().tolist() == expected  # type: ignore[arg-type]


def test_the_last_token_is_found_where_padding_is_on_the_left() -> None:
    hidden = torch.tensor([[[99.0], [1.0], [2.0]]])
    assert pool(hidden, torch.tensor([[0, 1, 1]]), "last").item() == 2.0
