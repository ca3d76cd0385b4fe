"""The report on several objectives: its front, what is not on it, and the plots."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.importance import get_param_importances
from optuna.trial import create_trial

from hpo.reporting.importance import importances
from hpo.reporting.page import page
from hpo.reporting.report import report_on
from hpo.reporting.text import trial_note
from hpo.tally import FOLD_SCORES, VIOLATED
from tests.unit.hpo.reporting.told import several, stopped, study_in

SIZE = {"parameters": "minimize"}
OVER = {VIOLATED: {"parameters.at_most": 900.0}}


def pareto(folder: Path) -> optuna.Study:
    """Two trials on the front, one that is dominated, one that violates a constraint, and one that was stopped."""
    trials = [
        several((0.9, 100.0), (0.8, 100.0)),
        several((0.5, 10.0), (0.5, 10.0), lr=0.2),
        several((0.4, 20.0), (0.5, 20.0), lr=0.3),
        several((1.0, 999.0), (1.0, 999.0), lr=0.4, violation=900.0, **OVER),
    ]
    cut = stopped(0.0)
    cut.values = None
    cut.intermediate_values = {}
    cut.user_attrs[FOLD_SCORES] = [[0.1, 30.0], None]
    return study_in(folder, *trials, cut, further=SIZE)


def test_a_report_has_the_front_and_counts_the_others(tmp_path: Path) -> None:
    report = report_on(pareto(tmp_path))
    rows = dict(report.rows)
    assert rows["objectives"] == "maximize accuracy, minimize parameters"
    assert rows["trials"] == "4 complete, 1 pruned"
    assert rows["front"] == "2 that no other dominates: 0, 1"
    assert rows["not on it"] == "of the complete trials 1 dominated, 1 infeasible"
    assert rows["saved"].startswith("3 epochs of folds (10% of all without stopping) by stopping 1 trial")
    assert [row[1:3] for row in report.table] == [("0.8500 (-0.2504 to 1.9504)", "100"), ("0.5000", "10.0000")]
    assert report.numbers == [0, 1]
    assert report.train == " --trial 0"
    values = json.loads(json.dumps(report.values, default=str))
    assert {kind: [each["number"] for each in values[kind]] for kind in ("front", "dominated", "infeasible")} == {
        "front": [0, 1],
        "dominated": [2],
        "infeasible": [3],
    }
    assert "Pareto front: accuracy and parameters" in page(report)


def test_the_front_is_drawn_with_its_intervals_and_the_line_that_it_attains(tmp_path: Path) -> None:
    front, *others = report_on(pareto(tmp_path)).plots
    assert [front.name, *(plot.name for plot in others)] == ["front_0_1", "parallel_coordinates", "importances"]
    drawn = {trace.name: trace for trace in front.figure.data}
    assert list(zip(drawn["front"].x, drawn["front"].y, strict=True)) == [(10.0, 0.5), (100.0, pytest.approx(0.85))]
    assert drawn["front"].line.shape == "hv"  # more parameters, and no better until the next trial
    assert list(drawn["front"].error_y.array) == [0.0, pytest.approx(12.7062 * math.sqrt(0.005 * 1.5), abs=1e-4)]
    assert [*drawn["dominated"].x, *drawn["infeasible"].x] == [20.0, 999.0]
    assert [trace.name for trace in others[-1].figure.data] == ["accuracy", "parameters"]


def test_three_objectives_are_drawn_two_by_two(tmp_path: Path) -> None:
    study = study_in(tmp_path, several((0.9, 9.0, 0.1), (0.9, 9.0, 0.1)), further={**SIZE, "loss": "minimize"})
    plots = report_on(study).plots
    assert [plot.name for plot in plots] == ["front_0_1", "front_0_2", "front_1_2"]
    assert plots[0].figure.data[-1].mode == "markers"


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_importance_for_an_objective_is_that_of_a_study_with_it_alone(tmp_path: Path, direction: str) -> None:
    one, two = study_in(tmp_path, direction=direction), study_in(tmp_path, direction=direction, further=SIZE)
    for lr, momentum in np.random.default_rng(0).random((40, 2)):
        for study, values in ((one, [lr**8 + momentum / 10]), (two, [lr**8 + momentum / 10, 5.0])):
            params = {"lr": lr, "momentum": momentum}
            ranges = {name: FloatDistribution(0.0, 1.0) for name in params}
            scores = {FOLD_SCORES: [values, values]}
            study.add_trial(create_trial(values=values, params=params, distributions=ranges, user_attrs=scores))
    assert importances(two) == importances(one) == get_param_importances(one)
    assert importances(two, 1) == {}  # it is always the same


def test_the_note_of_a_trial_has_each_objective(tmp_path: Path) -> None:
    study = pareto(tmp_path)
    note = trial_note(study, study.trials[3])
    assert "| violates | parameters.at\\_most by 900 |" in note
    assert "| mean parameters | 999  (95 % interval 999 to 999) |" in note
    assert "| accuracy by fold | 0.1000 - |" in trial_note(study, study.trials[4])


def test_without_a_trial_that_keeps_the_constraints_the_report_says_that(tmp_path: Path) -> None:
    study = study_in(tmp_path, several((1.0, 999.0), (1.0, 999.0), violation=900.0, **OVER), further=SIZE)
    rows = dict(report_on(study).rows)
    assert "has no completed trial yet" in rows["result"]
    assert rows["infeasible"] == "1 violate a constraint"
