"""What ``hpo report`` shows of a study: rows, a table of its trials and plots, whether it has one winner, the front of
several objectives, or nothing yet. Terminal, page, notes and MLflow show this and know no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna

from hpo.errors import NoBestTrialError
from hpo.fold_statistics import SIGNIFICANCE
from hpo.front_text import front_table, front_values
from hpo.reporting.front_plots import draw_front
from hpo.reporting.front_report import describe_front_study
from hpo.reporting.plots import Plot, draw
from hpo.reporting.savings import cost_of
from hpo.reporting.study_report import describe_study
from hpo.reporting.summary import describe_status
from hpo.reporting.text import COLUMNS, Rows, front_summary, summary, table, unfinished_summary

OF_A_WINNER = f"""The best of many configurations looks better than it is, because part of its lead is luck. The
corrected score repeats the choice on resamples of the samples and scores what was chosen on the samples left out
(BBC-CV, Tsamardinos and others 2018): it is what to expect of the winner. Intervals over folds are corrected for the
overlap of their training sets (Nadeau and Bengio 2003). Tied with the best is what a paired test over folds cannot tell
from it at {SIGNIFICANCE:.0%}: among those, take the cheapest."""
OF_A_FRONT = """No trial is as good as one of the front in every objective and better in one: which of them to take is
for you to weigh. Intervals over folds are corrected for the overlap of their training sets (Nadeau and Bengio 2003).
The front was chosen by these means, so part of its lead is luck, which is not taken off here: the test split, on which
hpo train-best scores the trial that you name, has the last word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """One report, the same wherever it is shown."""

    study: str
    rows: Rows
    """What there is to say, by name."""
    how_to_read: str
    columns: Sequence[str]
    table: list[tuple[str, ...]]
    """Trials under `columns`, the best first: the number, and hyperparameters last."""
    plots: list[Plot]
    values: dict[str, Any]
    """All of it, for scripts."""
    train: str | None
    """Options with which train-best takes a trial, after a space; None when there is none to take."""

    @property
    def numbers(self) -> list[int]:
        """Of the trials in the table."""
        return [int(row[0]) for row in self.table]


def report_on(study: optuna.Study) -> Report:
    """The report that there can be."""
    try:
        return _of_a_front(study) if len(study.directions) > 1 else _of_a_winner(study)
    except NoBestTrialError as error:
        return _of_nothing_yet(study, str(error))


def _of_a_winner(study: optuna.Study) -> Report:
    found = describe_study(study)
    return Report(
        study=study.study_name,
        rows=summary(found),
        how_to_read=OF_A_WINNER,
        columns=COLUMNS,
        table=table(found.leaderboard),
        plots=draw(study, found),
        values={**asdict(found), "tied": found.tied},
        train="",
    )


def _of_a_front(study: optuna.Study) -> Report:
    found = describe_front_study(study)
    columns, *trials = front_table(found.front)
    kinds = {"front": found.front, "dominated": found.dominated, "infeasible": found.infeasible}
    return Report(
        study=study.study_name,
        rows=front_summary(found),
        how_to_read=OF_A_FRONT,
        columns=columns,
        table=trials,
        plots=draw_front(study, found),
        values=asdict(found) | {kind: [*map(front_values, each)] for kind, each in kinds.items()},
        train=f" --trial {found.front[0].number}",
    )


def _of_nothing_yet(study: optuna.Study, why: str) -> Report:
    status, cost = describe_status(study), cost_of(study)
    return Report(
        study=study.study_name,
        rows=unfinished_summary(status, cost, why),
        how_to_read="There is no complete trial to compare others with, and nothing to draw.",
        columns=(),
        table=[],
        plots=[],
        values={"status": asdict(status), "cost": asdict(cost), "best": None, "reason": why},
        train=None,
    )
