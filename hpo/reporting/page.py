"""The report as one HTML file that needs nothing else: plots by plotly, whose script is in the file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from plotly.io import to_html
from plotly.offline import get_plotlyjs

from hpo.console import clean, parameters
from hpo.fold_statistics import SIGNIFICANCE
from hpo.reporting.plots import MAX_ROWS, Plot
from hpo.reporting.study_report import StudyReport
from hpo.reporting.text import COLUMNS, summary, table

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
tbody tr { border-top: 1px solid #ddd; } .read { color: #555; } .best { font-weight: 600; }
"""

_WORDS = f"""The best of many configurations looks better than it is, because part of its lead is luck. The corrected
score repeats the choice on resamples of the samples and scores what was chosen on the samples left out (BBC-CV,
Tsamardinos and others 2018): it is what to expect of the winner. Intervals over folds are corrected for the overlap of
their training sets (Nadeau and Bengio 2003). Tied with the best is what a paired test over folds cannot tell from it at
{SIGNIFICANCE:.0%}: among those, take the cheapest."""


def page(report: StudyReport, plots: Sequence[Plot]) -> str:
    """The whole document. What comes from trials is escaped."""
    title = escape(clean(f"Study {report.best.study}"))
    sections = "\n".join(map(_section, plots))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>{_STYLE}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<h1>{title}</h1>
{_summary(report)}
<p class="read">{_WORDS}</p>
<h2>Configurations</h2>
{_leaderboard(report)}
{sections}
</body>
</html>
"""


def _summary(report: StudyReport) -> str:
    lines = [(escape(name), escape(clean(text))) for name, text in summary(report)]
    rows = "\n".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in lines)
    return f'<table id="summary"><tbody>\n{rows}\n</tbody></table>'


def _leaderboard(report: StudyReport) -> str:
    shown = report.leaderboard[:MAX_ROWS]
    head = "".join(f"<th>{escape(name)}</th>" for name in (*COLUMNS, "hyperparameters"))
    lines = []
    for each, cells in zip(shown, table(shown), strict=True):
        whole = "".join(f"<td>{escape(cell)}</td>" for cell in (*cells, parameters(each.params)))
        lines.append(f'<tr class="{cells[-1]}">{whole}</tr>')
    more = len(report.leaderboard) - len(shown)
    rest = f'<p class="read">And {more} more.</p>' if more else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(lines) + f"\n</tbody></table>\n{rest}"


def _section(plot: Plot) -> str:
    figure = to_html(plot.figure, full_html=False, include_plotlyjs=False, div_id=plot.name)
    return f'<h2>{escape(plot.title)}</h2>\n<p class="read">{escape(plot.how_to_read)}</p>\n{figure}'
