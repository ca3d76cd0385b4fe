"""What a report says in words and rows, the same on the terminal, on the page and in the notes of optuna-dashboard."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from hpo.console import clean, counted, number, parameters
from hpo.criteria import as_tuple, objectives_of
from hpo.fold_statistics import Interval, fold_interval
from hpo.reporting.bias_correction import Corrected
from hpo.reporting.front_report import FrontReport
from hpo.reporting.leaderboard import Standing
from hpo.reporting.savings import Cost, FalseStops
from hpo.reporting.study_report import StudyReport
from hpo.reporting.summary import StudyStatus
from hpo.study import FAILURE, IDENTITY, REASON, trial_folder
from hpo.tally import FOLD_SCORES, VIOLATED

Rows = list[tuple[str, str]]

COLUMNS = ("trial", "score", "95 % interval", "worse by", "p", "", "hyperparameters")
MAX_DAMAGED = 3
"""Trials whose damaged predictions are named."""


def summary(report: StudyReport) -> Rows:
    """The winner, how sure its score is, and what the search has cost."""
    best, corrected = report.best, report.corrected
    ties = ", ".join(map(str, report.tied)) or "none"
    return [
        ("study", clean(best.study)),
        ("trials", counts(report.status)),
        ("best trial", f"{best.number}  {parameters(best.params)}"),
        (best.metric, f"{number(best.interval.mean)}{bounds(best.interval)}, the mean over folds"),
        ("corrected", corrected_text(corrected, best.metric)),
        *([("left out", damaged_text(corrected.damaged))] if corrected.damaged else []),
        ("tied with it", ties),
        *([("importance", shares(report.importances))] if report.importances else []),
        *([("calibration", f"ECE {report.calibration.expected_error:.4f}")] if report.calibration else []),
        *cost(report.cost),
    ]


def front_summary(report: FrontReport) -> Rows:
    """The front, what became of the others, and what the search has cost."""
    fates = {"dominated": report.dominated, "infeasible": report.infeasible}
    numbers = ", ".join(str(trial.number) for trial in report.front)
    others = ", ".join(f"{len(trials)} {fate}" for fate, trials in fates.items() if trials)
    return [
        ("study", clean(report.status.study)),
        ("objectives", ", ".join(f"{each['direction']} {each['metric']}" for each in report.objectives)),
        ("trials", counts(report.status)),
        ("front", f"{len(report.front)} that no other dominates: {numbers}"),
        ("not on it", f"of the complete trials {others or 'none'}"),
        *(("importance", f"for {metric}: {shares(found)}") for metric, found in report.importances.items()),
        *cost(report.cost),
    ]


def unfinished_summary(status: StudyStatus, found: Cost, why: str) -> Rows:
    """What there is before the first trial is complete."""
    failures = ", ".join(f"{count} x {kind}" for kind, count in status.failures.items())
    return [
        ("study", clean(status.study)),
        ("trials", counts(status) or "none"),
        ("result", f"none: {why}"),
        *([("infeasible", f"{status.infeasible} violate a constraint")] if status.infeasible else []),
        *([("failed", failures)] if failures else []),
        *([("last failure", clean(status.last_failure))] if status.last_failure else []),
        *cost(found),
    ]


def counts(status: StudyStatus) -> str:
    """Trials by state, those of which there are any."""
    return ", ".join(f"{count} {state.lower()}" for state, count in status.trials.items() if count)


def corrected_text(found: Corrected, metric: str) -> str:
    """The corrected score and what it rests on, or why there is none."""
    if found.value is None or found.low is None or found.high is None:
        return found.note
    basis = f"{found.num_trials} trials, {found.num_samples} samples"
    left_out = f"; {found.num_without} without predictions left out" if found.num_without else ""
    interval = bounds(Interval(mean=found.value, low=found.low, high=found.high))
    return f"{metric} {number(found.value)}{interval}, by BBC-CV from {basis}{left_out}"


def damaged_text(damaged: Sequence[str]) -> str:
    """The first of the trials whose predictions are damaged, and how many others there are."""
    more = f"; and {len(damaged) - MAX_DAMAGED} more trials" if len(damaged) > MAX_DAMAGED else ""
    return "; ".join(damaged[:MAX_DAMAGED]) + more


def shares(importances: Mapping[str, float]) -> str:
    """Of each hyperparameter, the largest first."""
    return ", ".join(f"{clean(name)} {share:.0%}" for name, share in importances.items())


def cost(found: Cost) -> Rows:
    """What was spent, what stopping saved, and how often it was wrong."""
    spent = f"{found.fold_epochs} epochs of folds"
    share = f"{found.saved_share:.0%} of all without stopping"
    saved = f"{found.saved_fold_epochs} epochs of folds ({share}) by stopping {counted(found.num_stopped, 'trial')}"
    if found.device_seconds is not None:
        spent += f", {found.device_seconds:.0f} device seconds"
    if found.saved_device_seconds is not None:
        saved += f", about {found.saved_device_seconds:.0f} device seconds"
    return [("spent", spent), ("saved", saved), ("false stops", false_stops_text(found.false_stops))]


def false_stops_text(found: FalseStops | None) -> str:
    """The measured rate, or that there is none."""
    if found is None:
        return "not measured: no stopped trial was finished as a check"
    interval = f"95 % interval {found.low:.0%} to {found.high:.0%}"
    return f"{found.num_false} of {found.num_audited} audited stops ({found.rate:.0%}; {interval})"


def bounds(interval: Interval) -> str:
    """The interval in brackets; nothing when there is none."""
    if math.isnan(interval.low):
        return ""
    return f"  (95 % interval {number(interval.low)} to {number(interval.high)})"


def table(standings: Sequence[Standing]) -> list[tuple[str, ...]]:
    """A row for each under COLUMNS."""
    return [_row(each, is_best=place == 0) for place, each in enumerate(standings)]


def _row(each: Standing, *, is_best: bool) -> tuple[str, ...]:
    interval, found = each.interval, each.comparison
    between = "-" if math.isnan(interval.low) else f"{number(interval.low)} to {number(interval.high)}"
    worse_by, p_value = (number(found.worse_by.mean), f"{found.p_value:.3f}") if found else ("-", "-")
    verdict = "best" if is_best else "tied" if each.is_tied else ""
    return str(each.number), number(interval.mean), between, worse_by, p_value, verdict, parameters(each.params)


def study_note(rows: Rows, page: Path) -> str:
    """Markdown for the study."""
    return f"{_markdown(rows)}\n\nThe whole report: {_cell(str(page))} (also an artifact here)."


def trial_note(study: optuna.Study, trial: FrozenTrial) -> str:
    """Markdown for one trial: how it ended and why, its folds, and where they are."""
    identity = study.user_attrs[IDENTITY]
    return _markdown(
        [
            ("ended as", trial.state.name),
            *_why(trial),
            *_scores(trial, identity),
            ("run directories", str(trial_folder(study, trial))),
        ]
    )


def _why(trial: FrozenTrial) -> Rows:
    failure, reason = trial.user_attrs.get(FAILURE), trial.user_attrs.get(REASON)
    violated = ", ".join(f"{name} by {number(by)}" for name, by in trial.user_attrs.get(VIOLATED, {}).items())
    return [
        *([("why", reason)] if reason else []),
        *([("violates", violated)] if violated else []),
        *([("failure", f"{failure['kind']}: {failure['message']}")] if failure else []),
    ]


def _scores(trial: FrozenTrial, identity: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Of each objective the mean, and the score of each fold."""
    every, folds = trial.user_attrs.get(FOLD_SCORES) or [], identity["config"]["cross_validation.folds"]
    for place, objective in enumerate(objectives_of(identity)):
        scores = [None if score is None else as_tuple(score)[place] for score in every]
        if ended := [score for score in scores if score is not None]:
            interval = fold_interval(ended, folds=folds)
            yield f"mean {objective['metric']}", f"{number(interval.mean)}{bounds(interval)}"
            yield f"{objective['metric']} by fold", " ".join(map(number, scores))


def _markdown(rows: Rows) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows)])


def _cell(text: str) -> str:
    """Plain text within a Markdown table, in which trials may have put anything."""
    plain = clean(text)
    for character in "\\`*_{}[]|#!":
        plain = plain.replace(character, f"\\{character}")
    return escape(plain, quote=False)
