"""What a check has found: how bad it is, the command that ends it, and a repair where one is safe."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

import psutil
from pynvml import NVMLError

from hpo.errors import HpoError
from hpo.masking import masked


class Level(StrEnum):
    """The worst comes last, next to the prompt."""

    OK = "ok"
    FIXED = "fixed"
    NOTE = "note"
    """Nothing is wrong, or it could not be looked at."""
    PROBLEM = "problem"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check says. What is `ok` fits in a line."""

    check: str
    """A word or two."""
    level: Level
    text: str
    fix: str | None = None
    """The command that ends it; None where there is none to name, or where `repair` does it."""
    repair: Callable[[], str] | None = None
    """Ends it, loses nothing that is of use, and says what it did. Raises HpoError when it could not."""


Look = Callable[[], Iterator[Finding]]
"""One check."""


def ok(check: str, text: str) -> Finding:
    """All is well."""
    return Finding(check=check, level=Level.OK, text=text)


def note(check: str, text: str, *, fix: str | None = None, repair: Callable[[], str] | None = None) -> Finding:
    """Worth knowing, and no fault."""
    return Finding(check=check, level=Level.NOTE, text=text, fix=fix, repair=repair)


def problem(check: str, text: str, *, fix: str | None = None, repair: Callable[[], str] | None = None) -> Finding:
    """Something is wrong, or soon will be."""
    return Finding(check=check, level=Level.PROBLEM, text=text, fix=fix, repair=repair)


def attempted(check: str, look: Look) -> Iterator[Finding]:
    """What `look` finds; a note where this machine does not let it look."""
    try:
        yield from look()
    except (OSError, psutil.Error, NVMLError, HpoError) as error:
        yield note(check, f"cannot be looked at here: {masked(str(error) or type(error).__name__)}")


def mended(finding: Finding) -> Finding:
    """`finding` after its repair, if it has one."""
    if finding.repair is None:
        return finding
    try:
        return Finding(check=finding.check, level=Level.FIXED, text=finding.repair())
    except Exception as error:  # whatever a database, MLflow or the file system raises: the others are still mended
        text = f"{finding.text}; --fix could not: {masked(' '.join(str(error).split()))}"
        return replace(finding, level=Level.PROBLEM, text=text, repair=None)


def listed(numbers: list[int], what: str) -> str:
    """``trial 3``, ``trials 3, 4``; of many, the first and how many."""
    shown = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if numbers[8:] else "")
    return f"{what}{'s' * (len(numbers) != 1)} {shown}"


def processes_with(path: str) -> list[int]:
    """The other processes that have the file `path` open, of those that this user may look at."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and path in (each.path for each in process.open_files()):
                found.append(process.pid)
    return found
