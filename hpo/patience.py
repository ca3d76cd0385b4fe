"""Waiting for a database that is away: a server that restarts, a network that is gone for a while, a lock held long."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError

from hpo.masking import masked

Value = TypeVar("Value")

OUTAGE_S = 900.0
"""How long a sweep waits for a database that is away, while its jobs train on."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
"""Each wait is twice the one before, give or take a third, so that many workers do not come back all at once."""
TOLD_AFTER_S = 5.0
"""What lasts no longer is not worth a word."""
BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
NO_SPACE, WRONG_PASSWORD, NO_DATABASE = "53100", "28", "3D000"
"""SQLSTATEs of PostgreSQL that no waiting helps."""


class Patience:
    """How long a call of the database is tried again. Any thread may use it.

    A transaction either was committed or changed nothing, so another try is safe; but of one whose connection broke
    nobody knows which, until it is looked at.
    """

    def __init__(self, lasts_s: float = 0.0, say: Callable[[str], None] = lambda text: None) -> None:
        """`lasts_s` of 0 tries once. `say` hears when the database is away for long, and when it is back."""
        self.lasts_s, self.say = lasts_s, say
        self._inside = threading.local()

    def __call__(self, call: Callable[[], Value]) -> Value:
        """What `call` returns, tried until the database answers.

        Raises what the database does when it is still away after all that time, or when no waiting helps.
        """
        return self.until(lambda is_again: call())

    def until(self, call: Callable[[bool], Value]) -> Value:
        """The same; `call` is told whether it is called again, so that it can look whether it had worked."""
        if getattr(self._inside, "is_set", False):  # only the whole transaction is tried again
            return call(False)
        self._inside.is_set = True
        try:
            return self._try(call)
        finally:
            self._inside.is_set = False

    def _try(self, call: Callable[[bool], Value]) -> Value:
        began, wait, is_again, is_told = time.monotonic(), FIRST_WAIT_S, False, False
        while True:
            try:
                value = call(is_again)
            except Exception as error:
                away = time.monotonic() - began
                if away >= self.lasts_s or not is_passing(error):
                    raise
                if away >= TOLD_AFTER_S and not is_told:
                    self.say(f"the study's database does not answer, waiting for it: {reason_of(error)}")
                    is_told = True
            else:
                if is_told:
                    self.say(f"the study's database is back after {time.monotonic() - began:.0f} s")
                return value
            is_again = True
            time.sleep(wait * random.uniform(2 / 3, 4 / 3))  # nosec B311 - no secret
            wait = min(2 * wait, LONGEST_WAIT_S)


def is_passing(error: Exception) -> bool:
    """Whether an error of a database may be gone after a while."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, PendingRollbackError):  # of a session whose connection broke
        return True
    if not isinstance(cause, OperationalError | InterfaceError):
        return isinstance(cause, DBAPIError) and cause.connection_invalidated
    if isinstance(cause.orig, sqlite3.Error):
        return getattr(cause.orig, "sqlite_errorcode", 0) & 0xFF in BUSY
    state = getattr(cause.orig, "sqlstate", None) or ""
    return not state.startswith((NO_SPACE, WRONG_PASSWORD, NO_DATABASE))


def reason_of(error: Exception) -> str:
    """One line, without credentials."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    return masked(str(getattr(cause, "orig", None) or cause)).splitlines()[0]
