"""The plots of a report, by plotly: for the page and for optuna-dashboard. Each says how to read it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.visualization import plot_intermediate_values, plot_parallel_coordinate
from plotly.graph_objects import Bar, Figure, Heatmap, Scatter

from hpo.console import clean, number
from hpo.pruning import axis_of
from hpo.reporting.calibration import Calibration
from hpo.reporting.leaderboard import Standing
from hpo.reporting.study_report import StudyReport
from hpo.step_axis import StepAxis

MAX_ROWS = 30
"""Trials in the plot of the leaderboard."""
MAX_CURVES = 60
"""Trials in the plot of learning curves."""
BEST, TIED, OTHER = "#1b6ca8", "#7fb3d5", "#c8c8c8"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """A figure with its heading."""

    name: str
    """Plain letters: its id on the page and in optuna-dashboard."""
    title: str
    how_to_read: str
    """One sentence."""
    figure: Figure


def draw(study: optuna.Study, report: StudyReport) -> list[Plot]:
    """All plots of a winner that there is something to draw for."""
    return styled(_plots(study, report))


def styled(drawn: Iterator[Plot]) -> list[Plot]:
    """All of them, in one style."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
        plots = list(drawn)
    for plot in plots:
        plot.figure.update_layout(template="plotly_white", title=None, margin={"l": 60, "r": 30, "t": 30, "b": 50})
    return plots


def _plots(study: optuna.Study, report: StudyReport) -> Iterator[Plot]:
    metric = report.best.metric
    yield Plot(
        name="leaderboard",
        title="Leaderboard",
        how_to_read=f"Mean {metric} over folds with its corrected 95 % interval: the best in blue, those that cannot be"
        " told from it in light blue; paired folds decide that, so overlapping intervals alone say little.",
        figure=_leaderboard(report.leaderboard[:MAX_ROWS], metric),
    )
    yield Plot(
        name="learning_curves",
        title="Learning curves",
        how_to_read=f"One line a trial: its {metric} after each epoch, fold after fold; a line that ends early was"
        " stopped, and one that still climbs at the end of its folds would have liked more epochs.",
        figure=_learning_curves(study, metric),
    )
    if len(report.leaderboard) > 1 and report.best.params:
        yield Plot(
            name="parallel_coordinates",
            title="Parallel coordinates",
            how_to_read="One line a completed trial, through the value of each hyperparameter, coloured by its score:"
            " where good lines bundle, the hyperparameter has found its range; where they spread, it hardly matters.",
            figure=plot_parallel_coordinate(study, target_name=metric),
        )
    if report.importances:
        yield importance_plot({metric: report.importances})
    if report.calibration is not None:
        yield Plot(
            name="calibration",
            title="Calibration of the winner",
            how_to_read="Out-of-fold predictions by confidence: points on the diagonal are right as often as they say,"
            " points below it are too sure of themselves.",
            figure=_reliability(report.calibration),
        )
    if report.confusion is not None:
        yield Plot(
            name="confusion",
            title="Confusion of the winner",
            how_to_read="Out-of-fold predictions, the true class by row: what lies off the diagonal is taken for the"
            " class of its column. Classes are numbered in sorted order of their names.",
            figure=_confusion(report.confusion),
        )


def importance_plot(importances: Mapping[str, Mapping[str, float]]) -> Plot:
    """Of each metric, the share of each hyperparameter."""
    figure = Figure()
    for metric, shares in importances.items():
        names = [clean(name) for name in shares]
        figure.add_trace(Bar(name=metric, x=[*shares.values()], y=names, orientation="h", texttemplate="%{x:.0%}"))
    figure.update_layout(
        xaxis={"title": "share", "tickformat": ".0%"},
        yaxis={"autorange": "reversed"},
        showlegend=len(importances) > 1,
    )
    return Plot(
        name="importances",
        title="Importance of hyperparameters",
        how_to_read="The share of each hyperparameter in what tells the good trials from the others, by PED-ANOVA;"
        " with fewer than some twenty trials it is mostly noise.",
        figure=figure,
    )


def _leaderboard(standings: list[Standing], metric: str) -> Figure:
    rows = standings[::-1]  # plotly draws from below
    best = standings[0].number
    colors = [BEST if each.number == best else TIED if each.is_tied else OTHER for each in rows]
    means = [each.interval.mean for each in rows]
    halves = [0.0 if math.isnan(each.interval.high) else each.interval.high - each.interval.mean for each in rows]
    folds = [" ".join(map(number, each.fold_scores)) for each in rows]
    points = Scatter(
        x=means,
        y=[f"trial {each.number}" for each in rows],
        error_x={"type": "data", "array": halves, "color": "#999999"},
        mode="markers",
        marker={"color": colors, "size": 11},
        text=folds,
        hovertemplate="%{y}: %{x:.4f}<br>folds %{text}<extra></extra>",
    )
    figure = Figure(points)
    figure.update_layout(xaxis_title=metric, height=120 + 26 * len(rows))
    return figure


def _learning_curves(study: optuna.Study, metric: str) -> Figure:
    figure, axis = plot_intermediate_values(study), axis_of(study)
    if len(figure.data) > MAX_CURVES:
        figure.data = figure.data[-MAX_CURVES:]
    for trace in figure.data:
        trace.x, trace.y = _apart(trace.x, trace.y, axis)
    middles = [(axis.step(fold, 1) + axis.step(fold, axis.max_epochs)) / 2 for fold in range(axis.num_folds)]
    labels = [f"fold {fold}" for fold in range(axis.num_folds)]
    figure.update_layout(
        xaxis={"title": "epochs, fold after fold", "tickvals": middles, "ticktext": labels}, yaxis_title=metric
    )
    for fold in range(1, axis.num_folds):
        figure.add_vline(x=axis.step(fold, 1) - 0.5, line={"color": "#dddddd", "width": 1})
    return figure


def _apart(steps: Sequence[int], values: Sequence[float], axis: StepAxis) -> tuple[list[Any], list[Any]]:
    """The same points but the verdict, with a gap between folds."""
    xs: list[Any] = []
    ys: list[Any] = []
    for step, value in zip(steps, values, strict=True):
        if step == axis.verdict:
            break
        if xs and axis.fold(step) != axis.fold(xs[-1]):
            xs.append(None)
            ys.append(None)
        xs.append(step)
        ys.append(value)
    return xs, ys


def _reliability(found: Calibration) -> Figure:
    diagonal = Scatter(x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": "#999999"}, hoverinfo="skip")
    text = [f"{count} samples" for count in found.counts]
    points = Scatter(
        x=found.confidence,
        y=found.accuracy,
        mode="lines+markers",
        marker={"color": BEST, "size": 10},
        text=text,
        hovertemplate="confidence %{x:.3f}, accuracy %{y:.3f}<br>%{text}<extra></extra>",
    )
    total = sum(found.counts)
    share = Bar(
        x=found.confidence,
        y=[count / total for count in found.counts],
        width=0.02,
        marker={"color": OTHER},
        hovertemplate="%{y:.1%} of the samples<extra></extra>",
    )
    figure = Figure([share, diagonal, points])
    figure.update_layout(
        xaxis={"title": "confidence", "range": [0, 1.02]},
        yaxis={"title": f"accuracy (bars: share of samples); ECE {found.expected_error:.4f}", "range": [0, 1.02]},
        showlegend=False,
    )
    return figure


def _confusion(table: list[list[int]]) -> Figure:
    names = [str(each) for each in range(len(table))]
    shares = [[count / max(1, sum(row)) for count in row] for row in table]
    heat = Heatmap(
        z=shares,
        x=names,
        y=names,
        text=table,
        texttemplate="%{text}" if len(table) <= 20 else None,
        colorscale="Blues",
        zmin=0,
        zmax=1,
        hovertemplate="true %{y}, predicted %{x}: %{text}<extra></extra>",
    )
    figure = Figure(heat)
    figure.update_layout(
        xaxis={"title": "predicted class", "type": "category"},
        yaxis={"title": "true class", "type": "category", "autorange": "reversed"},
    )
    return figure
