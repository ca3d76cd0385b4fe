"""Where the kernel counts its out-of-memory kills, in recorded files; integration/test_failures.py has a real kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo import trial
from hpo.host_memory import oom_kills
from hpo.trial import _seen_from_outside
from training.errors import Failure, FailureKind
from training.run_dir import RunDir

EVENTS = "low 0\nhigh 0\nmax 212\noom 9\noom_kill {}\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
VMSTAT = "nr_free_pages 812345\noom_kill {}\nallocstall_normal 3\n"
SECOND = "0::/user.slice/job_7\n"
FIRST = "9:name=systemd:/\n4:cpu,memory:/docker/4f2a\n0::/\n"
KILLED = Failure(kind=FailureKind.SIGNAL, message="a rank was killed (signal 9)")


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "counter", "text"),
    [
        (SECOND, "sys/fs/cgroup/user.slice/job_7/memory.events", EVENTS),
        (SECOND, "sys/fs/cgroup/memory.events", EVENTS),
        (FIRST, "sys/fs/cgroup/memory/docker/4f2a/memory.oom_control", CONTROL),
        (FIRST, "sys/fs/cgroup/memory/memory.oom_control", CONTROL),
        ("", "proc/vmstat", VMSTAT),
    ],
)
def test_the_count_is_that_of_our_cgroup_else_that_of_the_machine(
    tmp_path: Path, cgroup: str, counter: str, text: str
) -> None:
    write(tmp_path, **{"proc/self/cgroup": cgroup, "proc/vmstat": VMSTAT.format(70), counter: text.format(3)})
    assert oom_kills(tmp_path) == 3


def test_a_kernel_that_counts_nothing_is_no_mistake(tmp_path: Path) -> None:
    assert oom_kills(tmp_path) is None
    write(tmp_path, **{"proc/self/cgroup": SECOND, "proc/vmstat": "nr_free_pages 1\n"})
    assert oom_kills(tmp_path) is None


def test_this_machine_s_own_files_are_read() -> None:
    found = oom_kills()
    assert found is None or found >= 0


@pytest.mark.parametrize(
    ("failure", "now", "kind"),
    [
        (KILLED, 4, FailureKind.OOM),
        (KILLED, 3, FailureKind.SIGNAL),
        (KILLED, None, FailureKind.SIGNAL),
        (Failure(kind=FailureKind.INFRASTRUCTURE, message="Connection closed by peer"), 5, FailureKind.OOM),
        (Failure(kind=FailureKind.USER_CODE, message="ValueError"), 5, FailureKind.USER_CODE),
    ],
)
def test_a_rank_that_was_killed_while_the_count_rose_ran_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Failure, now: int | None, kind: FailureKind
) -> None:
    monkeypatch.setattr(trial, "oom_kills", lambda: now)
    seen = _seen_from_outside(failure, RunDir(tmp_path), 3, was_stopped=False)
    assert seen is not None and seen.kind is kind
    if kind is FailureKind.OOM:
        assert seen.message.startswith("the machine had no memory left and the kernel killed")
        assert seen.message.endswith(failure.message)
    assert _seen_from_outside(None, RunDir(tmp_path), 3, was_stopped=False) is None
