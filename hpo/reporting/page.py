"""The report as one HTML file that needs nothing else: plots by plotly, whose script is in the file."""

from __future__ import annotations

from html import escape

from plotly.io import to_html
from plotly.offline import get_plotlyjs

from hpo.console import clean
from hpo.reporting.plots import MAX_ROWS, Plot
from hpo.reporting.report import Report
from hpo.reporting.text import Rows

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
thead { font-weight: 600; }
tbody tr { border-top: 1px solid #ddd; } .read { color: #555; }
"""


def page(report: Report) -> str:
    """The whole document. What comes from trials is escaped."""
    title = escape(clean(f"Study {report.study}"))
    sections = "\n".join(map(_section, report.plots))
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
{_summary(report.rows)}
<p class="read">{escape(report.how_to_read)}</p>
{_table(report)}
{sections}
</body>
</html>
"""


def _summary(rows: Rows) -> str:
    lines = [(escape(clean(name)), escape(clean(text))) for name, text in rows]
    body = "\n".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in lines)
    return f'<table id="summary"><tbody>\n{body}\n</tbody></table>'


def _table(report: Report) -> str:
    head, *rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in (report.columns, *report.table))
    body = "\n".join(f"<tr>{row}</tr>" for row in rows[:MAX_ROWS])
    rest = f'<p class="read">And {len(rows) - MAX_ROWS} more.</p>' if len(rows) > MAX_ROWS else ""
    whole = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>\n{rest}"
    return f"<h2>Configurations</h2>\n{whole}" if rows else ""


def _section(plot: Plot) -> str:
    figure = to_html(plot.figure, full_html=False, include_plotlyjs=False, div_id=plot.name)
    return f'<h2>{escape(plot.title)}</h2>\n<p class="read">{escape(plot.how_to_read)}</p>\n{figure}'
