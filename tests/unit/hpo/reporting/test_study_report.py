"""The report as a page, in notes and on the terminal: whole, and safe whatever trials contain."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import Trial, TrialState, create_trial
from optuna_dashboard import get_note, save_note

from hpo.reporting.page import page
from hpo.reporting.plots import draw
from hpo.reporting.publishing import SIGNED, STUDY, attach, keep_plots, write_notes
from hpo.reporting.report import report_on
from hpo.reporting.study_report import StudyReport, describe_study
from hpo.reporting.text import study_note, summary, trial_note
from hpo.study import FAILURE, REASON
from tests.unit.hpo.reporting.told import complete, keep, stopped, study_in
from training.predictions import CHECKSUMS

EVIL = "<script>alert('x')</script>"


def study_with_everything(folder: Path) -> optuna.Study:
    """Two classifiers with predictions, a stopped trial, and a failed one."""
    failure = {FAILURE: {"kind": "user_code", "message": EVIL}}
    study = study_in(
        folder, complete(0.9, 0.8), complete(0.7, 0.9, minute=1), stopped(0.1, **{REASON: f"fold 0 {EVIL}"}, **failure)
    )
    random = np.random.default_rng(0)
    for number in range(2):
        labels, chances = random.integers(0, 3, 60), random.dirichlet([1, 1, 1], 60)
        rows = {"labels": labels, "predicted": chances.argmax(axis=1), "probabilities": chances.astype(np.float16)}
        keep(study, number, rows)
    return study


def report_of(folder: Path) -> StudyReport:
    return describe_study(study_with_everything(folder))


def test_a_report_holds_what_the_study_has_come_to(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    assert [each.number for each in report.leaderboard] == [0, 1]
    assert report.tied == [1]
    assert report.corrected.num_trials == 2
    assert list(report.importances) == ["optimizer.lr"]
    assert report.calibration is not None
    assert report.confusion is not None
    assert np.sum(report.confusion) == 60
    assert report.cost.num_stopped == 1
    json.dumps(asdict(report), default=str)


def test_a_task_that_keeps_nothing_has_a_report_that_says_so(tmp_path: Path) -> None:
    study = study_in(tmp_path, complete(0.9, 0.8))
    report = describe_study(study)
    assert dict(summary(report))["corrected"].startswith("not corrected: fewer than two")
    assert (report.calibration, report.confusion, report.importances) == (None, None, {})
    assert [plot.name for plot in draw(study, report)] == ["leaderboard", "learning_curves"]


def test_the_page_needs_nothing_else_and_says_how_to_read_each_plot(tmp_path: Path) -> None:
    study = study_with_everything(tmp_path)
    report = describe_study(study)
    plots = draw(study, report)
    text = page(report_on(study))
    names = ["leaderboard", "learning_curves", "parallel_coordinates", "importances", "calibration", "confusion"]
    assert [plot.name for plot in plots] == names
    for plot in plots:
        assert f'id="{plot.name}"' in text
        assert re.search(rf"<h2>{plot.title}</h2>\n<p class=\"read\">\w.+\.</p>", text)
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", text)


def test_what_trials_contain_is_text_on_the_page_and_in_notes(tmp_path: Path) -> None:
    study = study_with_everything(tmp_path)
    rows = [(EVIL, EVIL), *summary(replace(describe_study(study), importances={EVIL: 1.0}))]
    evil = replace(report_on(study), rows=rows, table=[(EVIL,)], columns=(EVIL,), plots=[])
    assert EVIL not in page(evil)
    assert page(evil).count("&lt;script&gt;") == 5
    assert "<" not in study_note(rows, tmp_path / "report.html")
    note = trial_note(study, study.trials[2])
    assert "<" not in note
    assert "fold 0" in note
    assert "trial\\_0002" in note


def test_a_learning_curve_has_a_gap_between_folds(tmp_path: Path) -> None:
    study = study_with_everything(tmp_path)
    [curves] = [plot.figure for plot in draw(study, describe_study(study)) if plot.name == "learning_curves"]
    assert list(curves.data[0].x) == [1, 2, 3, None, 4, 5, 6]
    assert list(curves.data[2].x) == [1]


def test_a_second_report_takes_the_place_of_the_first_and_a_person_s_note_stays(tmp_path: Path) -> None:
    study = study_with_everything(tmp_path)
    file = tmp_path / "report.html"
    for text in ("first", "second"):
        write_notes(study, {STUDY: f"{text} {SIGNED}", 0: f"{text} {SIGNED}", 1: f"{text} {SIGNED}"})
        if text == "first":
            save_note(study, "mine")
        file.write_text(text)
        attach(study, file, tmp_path)
        keep_plots(study, draw(study, describe_study(study)))
    assert get_note(study) == "mine"
    [artifact] = get_all_artifact_meta(study)
    assert artifact.mimetype == "text/html"
    assert (tmp_path / "artifacts" / artifact.artifact_id).read_text() == "second"
    assert [get_note(Trial(study, trial._trial_id)) for trial in study.trials[:2]] == [f"second {SIGNED}"] * 2


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_study_of_one_fold_epoch_can_be_reported(tmp_path: Path, direction: str) -> None:
    study = study_in(tmp_path, complete(0.5, 0.5, epochs=1), direction=direction)
    assert page(report_on(study)).startswith("<!DOCTYPE html>")


def test_a_winner_whose_predictions_are_damaged_has_a_report_without_them(tmp_path: Path) -> None:
    study = study_with_everything(tmp_path)
    folder = tmp_path / "trial_0000" / "fold_1" / "predictions"
    (folder / CHECKSUMS).unlink()
    np.save(folder / "probabilities.npy", np.zeros((30, 2, 2)))
    report = describe_study(study)
    assert (report.calibration, report.confusion) == (None, None)
    rows = dict(summary(report))
    assert rows["left out"].startswith(f"trial 0: {tmp_path}/trial_0000: predictions of two folds differ in their form")
    assert rows["corrected"].startswith("accuracy 0.")


def test_a_study_without_a_completed_trial_has_a_report_of_what_there_is(tmp_path: Path) -> None:
    failed = create_trial(state=TrialState.FAIL, user_attrs={FAILURE: {"kind": "out_of_memory", "message": EVIL}})
    report = report_on(study_in(tmp_path, stopped(0.1, 0.1), failed))
    rows = dict(report.rows)
    assert rows["trials"] == "1 pruned, 1 fail"
    assert rows["result"].startswith(
        "none: study 'demo' has no completed trial yet: 1 of 2 trials failed (1 out_of_memory)"
    )
    assert rows["failed"] == "1 x out_of_memory"
    assert rows["spent"] == "2 epochs of folds"
    assert (report.values["best"], report.train, report.plots) == (None, None, [])
    assert "<h2>Configurations" not in page(report)
    assert EVIL not in page(report)
