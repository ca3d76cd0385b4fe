"""A private PostgreSQL server, for the tests and scripts/bench_orchestrator."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path


class PostgresMissingError(Exception):
    """There is no PostgreSQL on this machine."""


@contextlib.contextmanager
def running_postgres() -> Iterator[str]:
    """SQLAlchemy URL of a server on a free loopback port; its data goes with it. Raises PostgresMissingError."""
    with running_server() as server:
        yield server.url


@contextlib.contextmanager
def running_server(address: str = "127.0.0.1", *, within: Sequence[str] = ()) -> Iterator[PostgresServer]:
    """The server itself, at an address of this machine, its programs `within` another command."""
    bin_dir = _bin_dir()
    if bin_dir is None:
        raise PostgresMissingError("PostgreSQL is not installed: no initdb on PATH or in /usr/lib/postgresql/*/bin")
    with tempfile.TemporaryDirectory(prefix="hpo-postgres-") as directory:
        server = PostgresServer(bin_dir, Path(directory), address, within)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()


class PostgresServer:
    """One server, its data in `directory`. As root it runs as another user, because PostgreSQL refuses root."""

    START_ATTEMPTS = 3
    """Another program may take the free port before the server does."""

    def __init__(self, bin_dir: Path, directory: Path, address: str, within: Sequence[str] = ()) -> None:
        self._bin_dir, self._address, self._within = bin_dir, address, within
        self._directory = directory
        self._data = directory / "data"
        self._user = _unprivileged_user()
        self._port: int | None = None

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://hpo@{self._address}:{self._port}/postgres"

    def create(self) -> None:
        if self._user is not None:
            shutil.chown(self._directory, user=self._user)
        options = ["--username=hpo", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", f"--pgdata={self._data}", *options)
        with (self._data / "pg_hba.conf").open("a") as access:
            access.write("host all all samenet trust\n")

    def start(self) -> None:
        """On a free port, or on the one that it had. Returns when the server answers."""
        log = self._directory / "log"
        for _ in range(self.START_ATTEMPTS):
            port = self._port or free_port()
            options = f"-h {self._address} -p {port} -F -c unix_socket_directories="
            with contextlib.suppress(RuntimeError):
                self._run("pg_ctl", "start", "-w", "-D", str(self._data), "-l", str(log), "-o", options)
                self._port = port
                return
        raise RuntimeError(f"PostgreSQL does not start:\n{log.read_text()}")

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-w", "-D", str(self._data), "-m", "immediate")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._within, str(self._bin_dir / program), *arguments],
            cwd=self._directory,
            user=self._user,
            extra_groups=None if self._user is None else [],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} exited {done.returncode}:\n{done.stdout}")


def _bin_dir() -> Path | None:
    if (initdb := shutil.which("initdb")) is not None:
        return Path(initdb).resolve().parent
    found = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in found), key=lambda path: float(path.parent.name), default=None)


def _unprivileged_user() -> str | None:
    """Whom the server runs as; None is ourselves."""
    import pwd

    if os.geteuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in users else "nobody"


def free_port() -> int:
    """One that nobody listened at just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
