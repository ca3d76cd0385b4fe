"""What a report says in words and rows, the same on the terminal, on the page and in the notes of optuna-dashboard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from hpo.console import clean, number, parameters
from hpo.fold_statistics import Interval, fold_interval
from hpo.reporting.bias_correction import Corrected
from hpo.reporting.leaderboard import Standing, scores_of
from hpo.reporting.savings import Cost, FalseStops
from hpo.reporting.study_report import StudyReport
from hpo.study import FAILURE, IDENTITY, REASON, trial_folder
from hpo.tally import FOLD_SCORES

Rows = list[tuple[str, str]]

COLUMNS = ("trial", "score", "95 % interval", "worse by", "p", "")


def summary(report: StudyReport) -> Rows:
    """The winner, how sure its score is, and what the search has cost."""
    best, corrected = report.best, report.corrected
    counts = ", ".join(f"{count} {state.lower()}" for state, count in report.status.trials.items() if count)
    ties = ", ".join(map(str, report.tied)) or "none"
    return [
        ("study", clean(best.study)),
        ("trials", counts),
        ("best trial", f"{best.number}  {parameters(best.params)}"),
        (best.metric, f"{number(best.interval.mean)}{bounds(best.interval)}, the mean over folds"),
        ("corrected", corrected_text(corrected, best.metric)),
        ("tied with it", ties),
        *([("importance", importances(report))] if report.importances else []),
        *([("calibration", f"ECE {report.calibration.expected_error:.4f}")] if report.calibration else []),
        *cost(report.cost),
    ]


def corrected_text(found: Corrected, metric: str) -> str:
    """The corrected score and what it rests on, or why there is none."""
    if found.value is None or found.low is None or found.high is None:
        return found.note
    basis = f"{found.num_trials} trials, {found.num_samples} samples"
    left_out = f"; {found.num_without} without predictions left out" if found.num_without else ""
    interval = bounds(Interval(mean=found.value, low=found.low, high=found.high))
    return f"{metric} {number(found.value)}{interval}, by BBC-CV from {basis}{left_out}"


def importances(report: StudyReport) -> str:
    """The largest first."""
    return ", ".join(f"{clean(name)} {share:.0%}" for name, share in report.importances.items())


def cost(found: Cost) -> Rows:
    """What was spent, what stopping saved, and how often it was wrong."""
    spent = f"{found.fold_epochs} epochs of folds"
    share = f"{found.saved_share:.0%} of all without stopping"
    saved = f"{found.saved_fold_epochs} epochs of folds ({share}) by stopping {found.num_stopped} trials"
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
    return str(each.number), number(interval.mean), between, worse_by, p_value, verdict


def study_note(report: StudyReport, page: Path) -> str:
    """Markdown for the study."""
    lines = [f"| {name} | {_cell(value)} |" for name, value in summary(report)]
    return "\n".join(
        ["| | |", "| --- | --- |", *lines, "", f"The whole report: {_cell(str(page))} (also an artifact here)."]
    )


def trial_note(study: optuna.Study, trial: FrozenTrial) -> str:
    """Markdown for one trial: how it ended and why, its folds, and where they are."""
    scores, config = scores_of(trial), study.user_attrs[IDENTITY]["config"]
    rows: Rows = [("ended as", trial.state.name), *_why(trial)]
    every = trial.user_attrs.get(FOLD_SCORES) or []
    rows += [("folds", " ".join("-" if score is None else number(score) for score in every))] if every else []
    if scores:
        interval = fold_interval(scores, folds=config["cross_validation.folds"])
        rows.append(("mean", f"{number(interval.mean)}{bounds(interval)}"))
    rows.append(("run directories", str(trial_folder(study, trial))))
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {_cell(value)} |" for name, value in rows)])


def _why(trial: FrozenTrial) -> Rows:
    failure, reason = trial.user_attrs.get(FAILURE), trial.user_attrs.get(REASON)
    rows: Rows = [("why", reason)] if reason else []
    return rows + ([("failure", f"{failure['kind']}: {failure['message']}")] if failure else [])


def _cell(text: str) -> str:
    """Plain text within a Markdown table, in which trials may have put anything."""
    plain = clean(text)
    for character in "\\`*_{}[]|#!":
        plain = plain.replace(character, f"\\{character}")
    return escape(plain, quote=False)
