"""Who gets the live display, and that the terminal is left as it was."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

import pytest

from hpo.console import LiveConsole, PlainConsole, open_console
from hpo.events import Notice
from tests.unit.hpo.console.played import sweep

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture
def pty() -> Iterator[tuple[io.FileIO, TextIO]]:
    """Both ends of a pseudo-terminal: where a person reads, and where we write."""
    master, slave = os.openpty()
    with (
        io.FileIO(master) as reader,
        contextlib.suppress(OSError),
        open(slave, "w", encoding="utf-8") as stream,
    ):
        yield reader, stream


def everything_on(reader: io.FileIO, stream: TextIO) -> str:
    stream.close()
    shown = b""
    # Linux says EIO, not end of file, once a pseudo-terminal has no writer.
    with contextlib.suppress(OSError):
        while chunk := reader.read(65536):
            shown += chunk
    return shown.decode()


def test_a_terminal_gets_the_live_display(pty: tuple[io.FileIO, TextIO]) -> None:
    assert isinstance(open_console(pty[1]), LiveConsole)


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("JPY_PARENT_PID", "1")])
def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(
    name: str, value: str, pty: tuple[io.FileIO, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert isinstance(open_console(pty[1]), PlainConsole)


def test_a_log_file_gets_plain_lines_even_when_color_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(open_console(io.StringIO()), PlainConsole)


def test_talk_goes_to_the_stderr_of_the_moment(capsys: pytest.CaptureFixture[str]) -> None:
    with open_console() as console:
        console(Notice(message="hello"))
    assert capsys.readouterr() == ("", "note: hello\n")


def test_ctrl_c_restores_the_terminal(pty: tuple[io.FileIO, TextIO]) -> None:
    reader, stream = pty
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyboardInterrupt), open_console(stream) as console:
        console(sweep())
        assert sys.stdout is before[0]
        raise KeyboardInterrupt
    assert (sys.stdout, sys.stderr) == before
    shown = everything_on(reader, stream)
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)
    assert "0/3 trials" in shown


def test_what_others_write_to_stderr_appears_above_as_it_is(pty: tuple[io.FileIO, TextIO]) -> None:
    reader, stream = pty
    with open_console(stream) as console:
        console(sweep())
        sys.stderr.write("[/not markup]")
        sys.stderr.flush()
    assert "[/not markup]" in everything_on(reader, stream)


def test_a_closed_pipe_does_not_end_the_sweep() -> None:
    reader, writer = os.pipe()
    stream = open(writer, "w", encoding="utf-8")  # noqa: SIM115 - closing it raises, too
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        print("really closed", file=stream, flush=True)
    with open_console(stream) as console:
        console(Notice(message="anyone?"))
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_a_terminal_that_hung_up_does_not_end_the_sweep(pty: tuple[io.FileIO, TextIO]) -> None:
    reader, stream = pty
    with open_console(stream) as console:
        console(sweep())
        reader.close()
        with pytest.raises(OSError, match="Input/output error"):
            print("really gone", file=stream, flush=True)
        console(Notice(message="anyone?"))
