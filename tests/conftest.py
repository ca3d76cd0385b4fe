"""What the tests share: a private PostgreSQL server, storages, a browser, and a watch on processes left behind.

Every process of a job carries ``HPO_JOB_ID`` in its environment. This module adds ``HPO_TEST_SESSION`` to its own
environment, which jobs inherit, so that two test runs on one machine do not hold each other's jobs for their own, and
``HPO_LEASES``, so that they do not wait for each other's devices.
"""

from __future__ import annotations

import contextlib
import html
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.postgres import PostgresMissingError, running_postgres

if TYPE_CHECKING:
    import psutil

JOB_ID = "HPO_JOB_ID"
TEST_SESSION = "HPO_TEST_SESSION"
LEFTOVER_GRACE_S = 2.0
"""A killed process may need a moment until it is gone."""


def pytest_configure(config: pytest.Config) -> None:
    """Runs in each worker of xdist, which is a test run of its own."""
    os.environ[TEST_SESSION] = uuid.uuid4().hex
    leases = tempfile.TemporaryDirectory(prefix="hpo-leases-", ignore_cleanup_errors=True)
    os.environ["HPO_LEASES"] = leases.name
    config.add_cleanup(leases.cleanup)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call() -> None:
    os.environ.pop("PYTEST_CURRENT_TEST", None)  # or each test would need a fork server of its own


# Processes


@pytest.fixture(autouse=True)
def no_leftover_processes() -> Iterator[Callable[[], list[psutil.Process]]]:
    """Fails a test that leaves processes of a job alive, and ends them so that the next test starts clean.

    A test that asks for it gets a function: the live job processes that were started since the test began.
    """
    before = set(_job_processes())

    def started() -> list[psutil.Process]:
        return [process for process in _job_processes() if process not in before]

    yield started

    deadline = time.monotonic() + LEFTOVER_GRACE_S
    while (leftover := started()) and time.monotonic() < deadline:
        time.sleep(0.05)
    described = [_describe(process) for process in leftover]
    for process in leftover:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    assert not described, "job processes outlived the test: " + "; ".join(described)


def _job_processes() -> Iterator[psutil.Process]:
    """Live processes of this test session's jobs, wherever their parents went. Zombies have no environment."""
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            if environment.get(JOB_ID, "").strip(".") and environment.get(TEST_SESSION) == os.environ[TEST_SESSION]:
                yield process


def _describe(process: psutil.Process) -> str:
    import psutil

    with contextlib.suppress(psutil.Error):
        return f"{process.pid} ({process.status()}) {' '.join(process.cmdline())}"
    return f"{process.pid} (gone meanwhile)"


# Disks


@dataclass(frozen=True)
class SmallDisk:
    """A file system of its own, which is easily filled."""

    path: Path

    @property
    def ballast(self) -> Path:
        """What it is filled with."""
        return self.path / "ballast"

    def fill(self) -> None:
        """Leave no byte free."""
        with contextlib.suppress(OSError), self.ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        """Have room again."""
        self.ballast.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """24 MiB, or a skip where nothing can be mounted."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", path], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk needs the right to mount one: {mounted.stderr.strip()}")
    yield SmallDisk(path)
    subprocess.run(["umount", "--lazy", path], check=True)


# Memory


@dataclass(frozen=True)
class SmallMemory:
    """A control group of Linux, for whose processes the kernel has so much memory; the largest is killed for more."""

    path: Path

    @property
    def enter(self) -> str:
        """Python code, which takes the process that runs it there, and its children."""
        return f"open({str(self.path / 'cgroup.procs')!r}, 'w').write('0')"


@pytest.fixture
def small_memory() -> Iterator[SmallMemory]:
    """1,152 MiB, or a skip where no control group can be made: version 1 first, which may hide version 2."""
    versions = (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max"))
    for root, limit in versions:
        path = Path(root) / f"hpo-{uuid.uuid4().hex}"
        with contextlib.suppress(OSError):
            path.mkdir()
            if (path / limit).exists():
                (path / limit).write_text(str(1152 * 2**20))
                break
            path.rmdir()
    else:
        pytest.skip("a limit of memory needs the right to make a control group")
    yield SmallMemory(path)
    deadline = time.monotonic() + LEFTOVER_GRACE_S
    while path.exists() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # its last process is still leaving
            path.rmdir()


# Storages


@pytest.fixture(params=["sqlite", "postgresql"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """SQLAlchemy URL of a fresh, empty database, once for every backend a study may live in."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'study.db'}"
        return

    import psycopg

    server_url: str = request.getfixturevalue("postgres_url")
    conninfo = server_url.replace("postgresql+psycopg:", "postgresql:")
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield server_url.rpartition("/")[0] + f"/{name}"
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """SQLAlchemy URL of a private PostgreSQL server on a free loopback port; its data goes when the tests end."""
    try:
        with running_postgres() as url:
            yield url
    except PostgresMissingError as error:
        pytest.skip(str(error))


# Browser


@dataclass(frozen=True)
class Browser:
    """Headless Chromium: each call is a fresh process with a fresh, empty profile that can reach 127.0.0.1 alone."""

    executable: str

    FLAGS = (
        "--headless",
        "--no-sandbox",  # containers forbid it, and root may not have it
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--disable-breakpad",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--window-size=1400,900",
    )

    def dom(self, url: str, wait_for: str, timeout_s: float = 90.0) -> str:
        """The page as HTML after its scripts ran. Loads it again until `wait_for` is in its text.

        Raises AssertionError with the last page when `timeout_s` passes first.
        """
        deadline = time.monotonic() + timeout_s
        wait_until_it_answers(url, deadline)
        page = ""
        while (left_s := deadline - time.monotonic()) > 0:
            # The budget is the page's own clock: it jumps over idle time, so five seconds of it cost about one.
            page = self._run(min(left_s, 30.0), "--virtual-time-budget=5000", "--dump-dom", url) or page
            if wait_for in html.unescape(page):
                return page
            time.sleep(0.2)
        raise AssertionError(f"{wait_for!r} did not appear at {url} within {timeout_s:g} s; the page was:\n{page}")

    def screenshot(self, url: str, path: Path, timeout_s: float = 90.0) -> None:
        """Write what the page looks like to `path`, a PNG."""
        wait_until_it_answers(url, time.monotonic() + timeout_s)
        self._run(timeout_s, "--virtual-time-budget=10000", f"--screenshot={path}", url)
        assert path.exists(), f"no screenshot of {url} within {timeout_s:g} s"

    def _run(self, timeout_s: float, *arguments: str) -> str:
        with tempfile.TemporaryDirectory(prefix="hpo-browser-", ignore_cleanup_errors=True) as home:
            process = subprocess.Popen(
                [self.executable, *self.FLAGS, f"--user-data-dir={home}/profile", *arguments],
                env={**os.environ, "HOME": home},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
            try:
                return process.communicate(timeout=timeout_s)[0]
            except subprocess.TimeoutExpired:
                return ""
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # its helpers too
                process.communicate()


def wait_until_it_answers(url: str, deadline: float) -> None:
    """Cheaper than a browser for each try, while a server is still starting. A server that says no has answered."""
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError as answer:
            answer.close()
            return
        except OSError:
            time.sleep(0.1)


@pytest.fixture(scope="session")
def browser() -> Browser:
    """A headless browser, or a skip where Chromium is missing."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if (executable := shutil.which(name)) is not None:
            return Browser(executable)
    pytest.skip("Chromium is not installed: no chromium, chromium-browser or google-chrome on PATH")
