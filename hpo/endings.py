"""How a command ends: its exit status, what it says last, and what may end it."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from hpo import interruption
from hpo.masking import masked, visible

OUTAGES = {errno.EACCES, errno.EPERM, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM}
"""Errors of the file system, and limits of the machine, that no code here is to blame for."""


def leave(code: int, message: str) -> NoReturn:
    """Exit with `code` after a last `message`, which may quote anything."""
    print(visible(message), file=sys.stderr)
    sys.exit(code)


def flush_and_leave(code: str | int | None) -> NoReturn:
    """Exit with `code`, or with 1 when what was printed did not arrive, unless its reader went away."""
    try:
        if sys.stdout is not None:  # closed by the shell: >&-
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python tries once more at its end
        if not isinstance(error, BrokenPipeError):  # whose reader, such as head, has seen enough
            leave(1, f"error: stdout: {error.strerror}")
    sys.exit(code)


def outage(error: BaseException) -> str | None:
    """What went wrong around us, such as a full disk or a database that went away; None for a bug of ours."""
    from hpo.errors import DiskFullError
    from training.full_disk import explain, is_disk_error

    named = {type(each).__name__ for each in (error, error.__cause__)}
    if isinstance(error, DiskFullError):
        reason = str(error)
    elif named & {"StorageInternalError", "OperationalError", "DatabaseError"}:
        reason = f"the study database does not work: {error.__cause__ or error}"
    elif isinstance(error, OSError) and is_disk_error(error):
        reason = f"stdout: {error.strerror}" if error.filename is None and _takes_more() else explain(error, Path.cwd())
    elif isinstance(error, OSError) and error.errno in OUTAGES:
        reason = str(error)
    else:
        return None
    return masked(reason).splitlines()[0]


def _takes_more() -> bool:
    """Whether this folder does; then what is full and has no name is where the output goes."""
    from training.full_disk import probe

    try:
        probe(Path.cwd())
    except OSError:
        return False
    return True


@contextmanager
def terminable(go_on: Callable[[], str]) -> Iterator[None]:
    """Ctrl-C and the signals of schedulers end the command so that trials are told and ranks are gone.

    `go_on` tells the user how to continue what was cut short.
    """
    handlers = {signal.SIGINT: interruption.interrupt, **dict.fromkeys(interruption.NOTICES, interruption.notice)}
    interruption.hear()
    # What is ignored stays ignored: nohup.
    heard = {each: handler for each, handler in handlers.items() if signal.getsignal(each) is not signal.SIG_IGN}
    before = {number: signal.signal(number, handler) for number, handler in heard.items()}
    try:
        yield
    except interruption.Preempted:
        leave(143, f"told to leave; {go_on()}")
    except KeyboardInterrupt:
        leave(130, f"interrupted; {go_on()}")
    except Exception as error:
        if (reason := outage(error)) is None:
            raise
        leave(1, f"error: {reason}\nwhat was finished is kept; {go_on()}")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
