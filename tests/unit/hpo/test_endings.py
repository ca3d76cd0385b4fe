"""How a command ends when what it prints does not arrive: in real processes, as a shell starts them."""

from __future__ import annotations

import os
import subprocess
import sys

VERSION = [sys.executable, "-m", "hpo", "--version"]
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def test_a_full_disk_under_stdout_is_an_error_that_says_so() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(VERSION, stdout=full, stderr=subprocess.PIPE, text=True, env=BUFFERED, check=False)
    assert (done.returncode, done.stderr) == (1, "error: stdout: No space left on device\n")


def test_a_reader_that_has_seen_enough_is_none() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        done = subprocess.run(VERSION, stdout=pipe, stderr=subprocess.PIPE, text=True, env=BUFFERED, check=False)
    assert (done.returncode, done.stderr) == (0, "")
