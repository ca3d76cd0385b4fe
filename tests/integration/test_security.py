"""Real sweeps and trainings that try to leak a password, to run code in the wrong process and to fill a disk."""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import psutil
import psycopg
import pytest

from hpo import trial
from tests.integration.conftest import start_hpo
from training.run_dir import RunDir

CANARY = "cAnArY9"
PASSWORD = f"{CANARY}@:/?#[%]&=wörd+"


@pytest.fixture
def database(postgres_url: str) -> str:
    """host:port/name of an empty database, whose server takes any password."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{postgres_url.partition('@')[2].rpartition('/')[0]}/{name}"


def hpo_and_its_processes(*arguments: str) -> tuple[str, list[psutil.Process], list[Any]]:
    """What an hpo command printed, and the command line and environment of each process it started, by process."""
    seen: dict[psutil.Process, tuple[list[str], dict[str, str]]] = {}
    process = start_hpo(*arguments)
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            for each in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    seen[each] = (each.cmdline(), each.environ())
        with contextlib.suppress(Exception):
            process.wait(0.05)
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    return out + err, [*seen], [*seen.values()]


def everything_in(database: str) -> str:
    """All rows of all tables, as text."""
    with psycopg.connect(f"postgresql://hpo@{database}") as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        tables = [connection.execute(f'SELECT * FROM "{name}"').fetchall() for (name,) in names]  # type: ignore[call-overload]
    return repr(tables)


def test_a_password_is_nowhere_but_where_it_was_given(
    workplace: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_STORAGE", f"postgresql+psycopg://hpo:{quote(PASSWORD, safe='')}@{database}")
    sweep, processes, seen = hpo_and_its_processes("sweep", "--study", "digits", "--trials", "1")
    assert processes and "accuracy" in sweep
    assert CANARY not in repr(seen), "neither in the arguments of a job nor in its environment"
    monkeypatch.delenv("HPO_STORAGE")
    other = f"postgresql+psycopg://{database}?user=hpo&password={quote(PASSWORD, safe='')}"
    typed, _, _ = hpo_and_its_processes("best", "--study", "digits", "--storage", other)
    assert "password=***" in typed
    assert CANARY not in sweep + typed + everything_in(database)
    files = [path for path in workplace.rglob("*") if path.is_file()]
    assert {"mlflow.db", "config.yaml", "rank_0.log"} <= {path.name for path in files}
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
    assert len(modes(workplace)) >= 5 and {*modes(workplace).values()} == {0o700}, modes(workplace)


def modes(folder: Path) -> dict[str, int]:
    """Of the folders that a search makes for what it writes, but for those inside of them."""
    found = [
        folder / "runs",
        *folder.glob("runs/digits"),
        *folder.glob("runs/cache/data-*/"),
        *folder.glob("runs/**/fold_?"),
    ]
    return {str(path): stat.S_IMODE(path.stat().st_mode) for path in found if path.is_dir()}


OWN = """\
import os, pathlib, sys
pathlib.Path("imported").open("a").write(f"{os.getpid()}\\n")
from training.tasks.image_classification import ImageClassification
class Own(ImageClassification):
    def build_model(self, config, data):
        raise RuntimeError("\\x1b[31mred\\x1b]0;title\\x07 and more\\x9b2J")
"""


def test_code_of_the_user_s_runs_in_jobs_alone_and_what_it_says_is_text(workplace: Path) -> None:
    Path("own.py").write_text(OWN)
    Path("own.yaml").write_text(
        "task: own:Own\ndata: {name: digits, max_samples: 300}\ndistributed: {accelerator: cpu}\n"
    )
    process = start_hpo("validate", "--config", "own.yaml")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 2
    assert "RuntimeError: red and more" in err
    assert not {"\x1b", "\x07", "\x9b"} & {*(out + err)}
    assert str(process.pid) not in Path("imported").read_text().split()


def test_a_log_without_end_is_cut_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "MAX_LOG_BYTES", 100_000)
    run_dir, notices = RunDir(tmp_path), list[str]()
    run_dir.logs.mkdir()
    order: Any = SimpleNamespace(run_dir=run_dir, on_notice=notices.append)
    writer = os.open(run_dir.log("rank_0"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for _ in range(3):
        os.write(writer, b"x" * 90_000 + b"\n")
        trial._cut_logs(order)
    os.write(writer, b"the end\n")
    os.close(writer)
    text = run_dir.log("rank_0").read_text()
    assert len(text) < 100_000 and text.endswith("x\nthe end\n") and "bytes were cut off here" in text
    assert len(notices) == 1 and "the job prints too much" in notices[0]
