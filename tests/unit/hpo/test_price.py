"""What a study may cost, before anything was measured."""

from __future__ import annotations

from typing import Any

import pytest

from hpo.price import price_of
from tests.unit.hpo.study.definitions import LR, NAME, define

EPOCHS: dict[str, Any] = {"int": [8, 32]}


@pytest.mark.parametrize(
    ("space", "epochs"),
    [
        ({}, (4, 4)),
        ({"training.epochs": EPOCHS}, (8, 32)),
        ({"training.epochs": {**EPOCHS, "when": {"optimizer.name": "sgd"}}}, (4, 32)),
        ({"training.epochs": {"choice": [2, 6]}}, (2, 6)),
    ],
)
def test_a_fold_has_the_epochs_that_are_sampled_or_else_those_of_the_job(
    space: dict[str, Any], epochs: tuple[int, int]
) -> None:
    wanted = define({"optimizer.lr": LR, "optimizer.name": NAME, **space}, settings=("training.epochs=4",))
    assert price_of(wanted, None).epochs == epochs
