"""How findings are told: a line for each, the worst of each place last; or one JSON object."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hpo.console import as_typed, clean, counted
from hpo.doctor.examination import Section
from hpo.doctor.finding import Finding, Level

ORDER = [*Level]


def print_findings(sections: Sequence[Section], *, as_json: bool) -> None:
    """To stdout."""
    if as_json:
        print(json.dumps(as_values(sections), indent=2))
        return
    width = max(len(finding.check) for section in sections for finding in section.findings)
    for section in sections:
        print(f"\n{clean(section.title)}")
        for finding in sorted(section.findings, key=lambda each: ORDER.index(each.level)):
            print(f"  {finding.level:<7}  {finding.check:<{width}}  {clean(finding.text)}")
            if finding.fix:
                print(f"  {'':<7}  {'':<{width}}  {as_typed(finding.fix)}")
    print(f"\n{summary(sections)}")


def summary(sections: Sequence[Section]) -> str:
    """``2 problems, 1 note, 14 ok``"""
    levels = _levels(sections)
    told = [counted(levels[level], level) for level in (Level.PROBLEM, Level.NOTE) if levels[level]]
    told += [f"{levels[level]} {level}" for level in (Level.FIXED, Level.OK) if levels[level]]
    return ", ".join(told)


def as_values(sections: Sequence[Section]) -> dict[str, Any]:
    """The same for machines."""
    levels = _levels(sections)
    counts = {"problems": levels[Level.PROBLEM], "notes": levels[Level.NOTE], "fixed": levels[Level.FIXED]}
    found = [_values(section.title, finding) for section in sections for finding in section.findings]
    return {**counts, "findings": found}


def _values(title: str, finding: Finding) -> dict[str, Any]:
    safe = {"where": title, "check": finding.check, "level": finding.level, "text": finding.text, "fix": finding.fix}
    return {**safe, "is_fixable": finding.repair is not None}


def num_problems(sections: Sequence[Section]) -> int:
    """Those that are left."""
    return _levels(sections)[Level.PROBLEM]


def _levels(sections: Sequence[Section]) -> Counter[Level]:
    return Counter(finding.level for section in sections for finding in section.findings)
