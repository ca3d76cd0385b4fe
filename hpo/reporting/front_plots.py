"""The plots of a report on several objectives, by plotly, as those of one are in hpo/reporting/plots.py."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import combinations
from typing import Any

import optuna
from optuna.visualization import plot_parallel_coordinate
from plotly.graph_objects import Figure, Scatter

from hpo.console import parameters
from hpo.fold_statistics import Interval
from hpo.reporting.front_report import FrontReport
from hpo.reporting.plots import BEST, OTHER, Plot, importance_plot, styled
from hpo.reporting.summary import BestTrial


def draw_front(study: optuna.Study, report: FrontReport) -> list[Plot]:
    """All plots of a front that there is something to draw for."""
    return styled(_plots(study, report))


def _plots(study: optuna.Study, report: FrontReport) -> Iterator[Plot]:
    metrics = [each["metric"] for each in report.objectives]
    line = (
        "the dotted line is what it attains" if len(metrics) == 2 else "it is judged by all objectives, not these two"
    )
    for up, right in combinations(range(len(metrics)), 2):
        yield Plot(
            name=f"front_{up}_{right}",
            title=f"Pareto front: {metrics[up]} and {metrics[right]}",
            how_to_read="One point a complete trial: the front in blue with its corrected 95 % intervals, the others in"
            f" grey, crossed where they violate a constraint; {line}.",
            figure=_front(report, up, right),
        )
    if len(report.front) + len(report.dominated) + len(report.infeasible) > 1 and report.front[0].params:
        yield Plot(
            name="parallel_coordinates",
            title="Parallel coordinates",
            how_to_read="One line a complete trial, through its value of each objective and each hyperparameter,"
            " coloured by how many layers of others dominate it, constraints aside: where lines of rank 0 bundle, the"
            " hyperparameter has found its range.",
            figure=plot_parallel_coordinate(study),
        )
    if report.importances:
        yield importance_plot(report.importances)


def _front(report: FrontReport, up: int, right: int) -> Figure:
    """Two of the objectives, by their places: one upwards, one to the right."""
    front = sorted(report.front, key=lambda trial: _interval(trial, right).mean)
    grey = {"color": OTHER, "size": 9}
    style: dict[str, Any] = {"error_x": _bars(front, right), "error_y": _bars(front, up)}
    if len(report.objectives) == 2:
        # From a trial to the next that has to pay more, nothing better is attained.
        shape = "hv" if report.objectives[right]["direction"] == "minimize" else "vh"
        style |= {"mode": "lines+markers", "line": {"shape": shape, "dash": "dot", "width": 1, "color": BEST}}
    figure = Figure(
        [
            _points("dominated", report.dominated, up, right, marker=grey),
            _points("infeasible", report.infeasible, up, right, marker={**grey, "symbol": "x"}),
            _points("front", front, up, right, marker={"color": BEST, "size": 11}, **style),
        ]
    )
    titles = [f"{each['metric']} ({each['direction']})" for each in report.objectives]
    figure.update_layout(xaxis_title=titles[right], yaxis_title=titles[up])
    return figure


def _points(name: str, trials: Sequence[BestTrial], up: int, right: int, **style: Any) -> Scatter:
    return Scatter(
        name=name,
        x=[_interval(trial, right).mean for trial in trials],
        y=[_interval(trial, up).mean for trial in trials],
        text=[f"trial {trial.number}<br>{escape(parameters(trial.params))}" for trial in trials],
        hovertemplate="%{text}<br>%{x}, %{y}<extra></extra>",
        **{"mode": "markers", **style},
    )


def _bars(trials: Sequence[BestTrial], place: int) -> dict[str, Any]:
    intervals = [_interval(trial, place) for trial in trials]
    halves = [0.0 if math.isnan(each.high) else each.high - each.mean for each in intervals]
    return {"type": "data", "array": halves, "color": "#999999"}


def _interval(trial: BestTrial, place: int) -> Interval:
    return trial.judgements[place].interval
