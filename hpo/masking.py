"""Text fit to be shown: no credentials of any URL, wherever they stand in it, and no control characters."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

# Whole sequences (a string such as a window title; CSI), so that not even their readable part is left behind.
ESCAPE_SEQUENCE = re.compile(r"\x1b[]P_^X][^\x07\x1b]*(?:\x07|\x1b\\)|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]")
# With its = first, which is quickly found in a long text.
SECRET = re.compile(r"=(?i:(?<=password=)|(?<=passwd=)|(?<=pwd=)|(?<=token=)|(?<=secret=))[^&\s'\"]+")

SECRET_VARIABLES = ("HPO_STORAGE", "PGPASSWORD", "PGPASSFILE", "PGSERVICE", "MLFLOW_")
"""How their names begin."""


def masked(text: str) -> str:
    """`text` without the credentials of any URL in it, in a time that grows as the text does."""
    return SECRET.sub("=***", re.sub(r"://\S+", _without_user, text))  # ://\S*@ would look again from each ://


def _without_user(found: re.Match[str]) -> str:
    _, at, host = found[0].rpartition("@")
    return f"://***@{host}" if at else found[0]


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """What processes get that we start: they speak to no database, and what is set for MLflow is for us."""
    return {name: value for name, value in environment.items() if not name.startswith(SECRET_VARIABLES)}


def visible(text: str) -> str:
    """`text`, its lines and indentation, without what a terminal would obey."""
    return "".join(each for each in ESCAPE_SEQUENCE.sub("", text) if each.isprintable() or each in "\n\t")


def mask_command_line() -> None:
    """Have ps show the credentials in this process's arguments no more (Linux; elsewhere nothing happens)."""
    secret = {os.fsencode(argument) for argument in sys.argv if masked(argument) != argument}
    if not secret or not sys.platform.startswith("linux"):
        return
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    shown = ctypes.string_at(start, end - start).split(b"\0")
    hidden = {each: os.fsencode(masked(os.fsdecode(each)))[: len(each)].ljust(len(each), b"*") for each in secret}
    ctypes.memmove(start, b"\0".join(hidden.get(each, each) for each in shown), end - start)


def secrets_of(uri: str) -> set[str]:
    """The passwords and tokens that go with a tracking `uri`, to be blotted out of any text."""
    # An error may quote a password without the URL around it.
    user = re.search(r"://(\S*)@", uri)
    password = user[1].partition(":")[2] if user else ""
    variables = {os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("PASSWORD", "TOKEN")}
    return {password, unquote(password), *variables} - {""}
