"""The run directory: whole files or none, each record once, and no folder handed out twice."""

from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.atomic_files import replacing, write_atomically
from training.checksums import Position, position_of
from training.config import JobConfig
from training.errors import ConfigError, DataError, Failure, FailureKind
from training.run_dir import Event, Outcome, Record, RunDir, Tail

HOSTILE = ["with space", 'it\'s "quoted"', "new\nline", "$HOME;rm -rf *", "ünï-😀", "-n", "%s{}"]
OUTCOME = Outcome(
    split_id="0123456789abcdef",
    metrics={"accuracy": 0.5, "loss": float("inf")},
    stopped=False,
    epochs=2,
    steps=10,
    train_samples=100,
    eval_samples=20,
    world_size=2,
    device="cpu",
    versions={"python": "3"},
)
OF_NOTHING = "00000000"
"""The checksum of an empty checkpoint."""
FAILURE = Failure(kind=FailureKind.DATA, message="no such column 'text'", rank=1, traceback="Traceback ...\ud800")


def record(step: int, epoch: int = 0, event: Event = Event.TRAIN) -> Record:
    return Record(event=event, step=step, epoch=epoch, time=1.5, values={"loss": 1 / step if step else 0.0})


@pytest.fixture(params=HOSTILE, ids=range(len(HOSTILE)))
def run_dir(request: pytest.FixtureRequest, tmp_path: Path) -> RunDir:
    """An empty run directory with a name that a careless program stumbles over."""
    return RunDir.create(tmp_path / request.param, request.param)


@pytest.fixture
def plain(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path, "run")


def files_of(run_dir: RunDir) -> list[str]:
    return sorted(path.name for path in run_dir.path.iterdir())


# Folders


def test_create_never_hands_out_a_folder_twice(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        created = list(pool.map(lambda _: RunDir.create(tmp_path / "a/b", "run").path.name, range(64)))
    assert sorted(created) == sorted(["run", *(f"run-{number}" for number in range(2, 65))])


def test_create_does_not_take_a_folder_or_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run-2").touch()
    assert RunDir.create(tmp_path, "run").path == tmp_path / "run-3"


def test_a_run_directory_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    created, prepared = RunDir.create(tmp_path, "created"), RunDir(tmp_path / "prepared")
    prepared.prepare(JobConfig())
    for run_dir in (created, prepared):
        assert stat.S_IMODE(run_dir.path.stat().st_mode) == 0o700


def test_paths_do_not_move_with_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = RunDir(Path("runs/run"))
    monkeypatch.chdir("/")
    assert run_dir.path == tmp_path / "runs/run"
    assert run_dir.log("rank_0") == tmp_path / "runs/run/logs/rank_0.log"
    assert run_dir.checkpoint(Position(3), "5d41402a") == tmp_path / "runs/run/checkpoints/epoch_0003-5d41402a.pt"


# Everything that is written is read back, whatever the path


def test_the_configuration_is_read_back(run_dir: RunDir) -> None:
    config = JobConfig().with_values({"optimizer.lr": 1e-5, "data.name": "no", "model.hidden_size": 8})
    run_dir.prepare(config)
    assert run_dir.load_config() == config


def test_records_are_read_back_in_order(run_dir: RunDir) -> None:
    written = [record(0, event=Event.START), record(3), record(5, epoch=1, event=Event.EVALUATE)]
    for each in written:
        run_dir.append(each)
    assert run_dir.records() == written


def test_the_outcome_is_read_back(run_dir: RunDir) -> None:
    assert run_dir.load_result() is None
    run_dir.write_result(OUTCOME)
    assert run_dir.load_result() == OUTCOME


def test_the_failure_is_read_back(run_dir: RunDir) -> None:
    assert run_dir.load_error() is None
    assert run_dir.write_error(FAILURE)
    assert run_dir.load_error() == FAILURE


def test_a_stop_request_is_there_until_the_next_preparation(run_dir: RunDir) -> None:
    run_dir.prepare(JobConfig())
    assert not run_dir.stop.exists()
    run_dir.request_stop()
    run_dir.request_stop()
    assert run_dir.stop.exists()
    run_dir.prepare(JobConfig(), resume=True)
    assert not run_dir.stop.exists()


def test_a_request_to_keep_the_checkpoints_outlasts_one_that_does_not_mind(run_dir: RunDir) -> None:
    run_dir.prepare(JobConfig())
    run_dir.request_stop()
    assert not run_dir.keeps_checkpoint()
    run_dir.request_stop(keeps_checkpoint=True)
    run_dir.request_stop()
    assert run_dir.stop.exists() and run_dir.keeps_checkpoint()
    run_dir.prepare(JobConfig(), resume=True)
    assert not run_dir.keeps_checkpoint()


def test_a_rank_that_was_told_to_leave_keeps_the_checkpoints_and_says_why(run_dir: RunDir) -> None:
    run_dir.prepare(JobConfig())
    run_dir.request_stop(keeps_checkpoint=True)
    assert not run_dir.is_preempted()
    run_dir.preempt()
    assert run_dir.is_preempted() and run_dir.keeps_checkpoint()
    run_dir.prepare(JobConfig(), resume=True)
    assert not run_dir.is_preempted()


# Preparing


def leave_traces(run_dir: RunDir, *, checkpoints: tuple[int, ...]) -> None:
    """What an attempt leaves that was cut short in its third epoch."""
    run_dir.prepare(JobConfig())
    run_dir.checkpoints.mkdir()
    for epoch in checkpoints:
        run_dir.checkpoint(Position(epoch), OF_NOTHING).touch()
    run_dir.append(record(0, event=Event.START))
    for epoch in range(3):
        run_dir.append(record(epoch * 10 + 5, epoch=epoch))
        run_dir.append(record(epoch * 10 + 10, epoch=epoch + 1, event=Event.EVALUATE))
    run_dir.append(record(35, epoch=3))
    run_dir.request_stop()
    run_dir.write_result(OUTCOME)
    run_dir.write_error(FAILURE)
    run_dir.log("rank_0").write_text("log\n")


def test_preparing_clears_what_an_earlier_attempt_left_but_its_logs(plain: RunDir) -> None:
    leave_traces(plain, checkpoints=(1, 2))
    plain.prepare(JobConfig(seed=7))
    assert files_of(plain) == ["config.yaml", "logs", "next"]
    assert plain.load_config().seed == 7
    assert plain.log("rank_0").read_text() == "log\n"


def test_preparing_afresh_does_not_mind_damaged_records(plain: RunDir) -> None:
    plain.metrics.write_bytes(b"\x00\x00\n")
    plain.prepare(JobConfig())
    assert plain.records() == []


def test_resuming_keeps_the_checkpoint_and_the_records_before_it(plain: RunDir) -> None:
    leave_traces(plain, checkpoints=(1, 2))
    plain.prepare(JobConfig(seed=7), resume=True)
    assert files_of(plain) == ["checkpoints", "config.yaml", "logs", "metrics.jsonl", "next"]
    assert plain.last_epoch() == 2
    assert [each.step for each in plain.records()] == [0, 5, 10, 15, 20]


def test_resuming_without_a_checkpoint_forgets_every_record(plain: RunDir) -> None:
    leave_traces(plain, checkpoints=())
    plain.prepare(JobConfig(), resume=True)
    assert plain.records() == []


def test_resuming_with_the_last_checkpoint_leaves_the_records_untouched(plain: RunDir) -> None:
    leave_traces(plain, checkpoints=(9,))
    before = plain.metrics.stat()
    plain.prepare(JobConfig(), resume=True)
    assert (plain.metrics.stat().st_ino, plain.metrics.stat().st_size) == (before.st_ino, before.st_size)


def test_resuming_an_empty_directory_prepares_it(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "new/run")
    run_dir.prepare(JobConfig(), resume=True)
    assert files_of(run_dir) == ["config.yaml", "logs", "next"]


def test_where_a_job_goes_on_is_said_once_and_by_an_attempt_before_it_not_at_all(plain: RunDir) -> None:
    following = RunDir(plain.path / "b\udcffytes 'and' quotes\n")
    plain.prepare(JobConfig())
    assert plain.load_next() is None
    assert not plain.write_next(following), "prepare said that nothing follows"
    plain.prepare(JobConfig(), is_last=False)
    assert not plain.next.exists()
    assert plain.write_next(following)
    assert not plain.write_next(None)
    assert (found := plain.load_next()) is not None and found.path == following.path


@pytest.mark.parametrize("epoch", range(5))
def test_forget_after_keeps_an_epoch_up_to_its_evaluation(plain: RunDir, epoch: int) -> None:
    written = [record(0, event=Event.START)]
    for number in range(3):
        written += [
            record(number * 10 + 5, epoch=number),
            record(number * 10 + 10, epoch=number + 1, event=Event.EVALUATE),
        ]
    for each in written:
        plain.append(each)
    plain.forget_after(Position(epoch))
    assert plain.records() == (written[: 1 + 2 * epoch] if epoch else [])


def test_forget_after_drops_a_line_that_a_kill_cut_off_so_that_the_next_one_is_whole(plain: RunDir) -> None:
    plain.append(record(10, epoch=1, event=Event.EVALUATE))
    with plain.metrics.open("a") as file:
        file.write('{"event": "train", "st')
    plain.forget_after(Position(1))
    plain.append(record(15, epoch=1))
    assert [each.step for each in plain.records()] == [10, 15]


def test_forget_after_is_no_error_before_the_first_record(plain: RunDir) -> None:
    plain.forget_after(Position(0))
    assert files_of(plain) == []


def test_the_newest_checkpoint_is_the_one_with_the_most_epochs(plain: RunDir) -> None:
    assert plain.last_epoch() == 0
    plain.checkpoints.mkdir()
    for epoch in (9, 10000, 10):
        plain.checkpoint(Position(epoch), OF_NOTHING).touch()
    (plain.checkpoints / ".epoch_20000.pt.abc.tmp").touch()  # being written
    assert plain.last_epoch() == 10000 and plain.position() == Position(10000)


def test_a_checkpoint_within_an_epoch_is_newer_than_the_one_at_its_start_and_older_than_the_one_at_its_end(
    plain: RunDir,
) -> None:
    plain.checkpoints.mkdir()
    assert not plain.has_checkpoint()
    taken = [Position(0, 7), Position(1), Position(1, 12), Position(1, 105), Position(2)]
    for at in taken:
        plain.checkpoint(at, OF_NOTHING).touch()
        assert plain.position() == at and plain.has_checkpoint() and plain.last_epoch() == at.epoch
    assert [position_of(path) for path in plain.saved_checkpoints()] == taken[::-1]


def test_forget_after_a_step_keeps_what_was_told_up_to_it(plain: RunDir) -> None:
    leave_traces(plain, checkpoints=())
    plain.forget_after(Position(2, 25))
    assert [each.step for each in plain.records()] == [0, 5, 10, 15, 20, 25]
    plain.forget_after(Position(2, 24))
    assert [each.step for each in plain.records()] == [0, 5, 10, 15, 20]


# Following


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.integers(0, 10**6), max_size=6),
    cuts=st.lists(st.integers(0, 10**6), max_size=8),
    tail_end=st.sampled_from([b"", b"{", b'{"event": "train"']),
)
def test_a_tail_gives_each_record_once_and_never_half_of_one(
    plain: RunDir, steps: list[int], cuts: list[int], tail_end: bytes
) -> None:
    plain.metrics.unlink(missing_ok=True)
    written = [record(step) for step in steps]
    for each in written:
        plain.append(each)
    data = (plain.metrics.read_bytes() if steps else b"") + tail_end
    plain.metrics.unlink(missing_ok=True)
    tail = Tail(plain)
    read = tail.read()
    borders = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in zip(borders, borders[1:], strict=False):
        with plain.metrics.open("ab") as file:
            file.write(data[start:end])
        read += tail.read()
        assert len(read) == data[:end].count(b"\n")
    assert read == written
    assert tail.read() == []


def test_a_tail_begins_at_its_offset(plain: RunDir) -> None:
    plain.append(record(1))
    tail = Tail(plain, offset=plain.metrics.stat().st_size)
    plain.append(record(2))
    assert [each.step for each in tail.read()] == [2]


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b"[]", b"7", b"\x00\x00", b"\xff", b'{"event": "dance"}', b'{"event": []}', b'{"event": "train"}'],
)
def test_a_damaged_record_is_a_data_error_with_the_file_and_the_line(plain: RunDir, line: bytes) -> None:
    plain.metrics.write_bytes(line + b"\n")
    with pytest.raises(DataError) as caught:
        plain.records()
    assert str(caught.value) == f"{plain.metrics}: a line is damaged: {line!r}"


# Whole files


def test_write_atomically_replaces_the_file_and_leaves_nothing_else(plain: RunDir) -> None:
    path = plain.path / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert files_of(plain) == ["file"]


def test_a_writer_that_raises_leaves_the_old_content_and_nothing_else(plain: RunDir) -> None:
    path = plain.path / "file"
    write_atomically(path, b"old")
    with pytest.raises(RuntimeError, match="disk"), replacing(path) as file:
        file.write(b"half of the new")
        file.flush()
        raise RuntimeError("disk")
    assert path.read_bytes() == b"old"
    assert files_of(plain) == ["file"]


def test_a_file_is_on_the_disk_before_it_takes_its_name(plain: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def recording_replace(source: str, target: Path) -> None:
        calls.append("rename")
        assert Path(source).parent == target.parent
        assert Path(source).read_bytes() == b"data"
        replace(source, target)

    monkeypatch.setattr("os.fsync", recording_fsync)
    monkeypatch.setattr("os.replace", recording_replace)
    write_atomically(plain.path / "file", b"data")
    assert calls == ["file", "rename", "folder"]


@pytest.mark.parametrize("name", ["result", "error"])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'{"kind": "x"}', b'{"unknown": 1}'])
def test_a_damaged_file_is_a_data_error_with_its_path(plain: RunDir, name: str, data: bytes) -> None:
    path = getattr(plain, name)
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        plain.load_result() if name == "result" else plain.load_error()
    assert str(caught.value).startswith(f"{path} is damaged: ")


def test_a_missing_or_damaged_configuration_is_a_config_error(plain: RunDir) -> None:
    with pytest.raises(ConfigError, match="config.yaml: cannot be read"):
        plain.load_config()
    plain.config.write_text("seed: 1\nsede: 2\n")
    with pytest.raises(ConfigError, match="config.yaml:2: sede is not a known key"):
        plain.load_config()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_configuration_that_is_not_what_was_written_is_a_config_error(plain: RunDir, damage: str) -> None:
    plain.write_config(JobConfig().with_values({"optimizer.lr": 0.3}))
    data = plain.config.read_bytes()
    damaged = {"flip": data.replace(b"lr: 0.3", b"lr: 0.7"), "cut": data[: data.index(b"  lr: ")], "empty": b""}
    plain.config.write_bytes(damaged[damage])
    with pytest.raises(ConfigError, match=r"config.yaml: is not what was written: .* or remove that line"):
        plain.load_config()


def test_a_configuration_without_its_checksum_is_taken_as_it_is(plain: RunDir) -> None:
    plain.write_config(JobConfig().with_values({"optimizer.lr": 0.3}))
    _, _, below = plain.config.read_bytes().partition(b"\n")
    plain.config.write_bytes(below.replace(b"lr: 0.3", b"lr: 0.7"))
    assert plain.load_config() == JobConfig().with_values({"optimizer.lr": 0.7})


# The first failure


def test_the_first_failing_rank_wins(plain: RunDir) -> None:
    assert plain.write_error(FAILURE)
    assert not plain.write_error(Failure(kind=FailureKind.OOM, message="later", rank=0))
    assert plain.load_error() == FAILURE
    assert files_of(plain) == ["error.json"]


def test_exactly_one_of_many_ranks_that_fail_at_once_wins(plain: RunDir) -> None:
    with ThreadPoolExecutor(16) as pool:
        failures = [Failure(kind=FailureKind.OOM, message="full", rank=rank) for rank in range(32)]
        won = list(pool.map(plain.write_error, failures))
    assert won.count(True) == 1
    assert plain.load_error() == failures[won.index(True)]
    assert files_of(plain) == ["error.json"]


def test_the_first_failing_rank_wins_where_there_are_no_hard_links(
    plain: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(source: str, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    assert plain.write_error(FAILURE)
    assert not plain.write_error(Failure(kind=FailureKind.OOM, message="later", rank=0))
    assert plain.load_error() == FAILURE
    assert files_of(plain) == ["error.json"]


def test_what_a_run_leaves_can_be_read_by_other_programs(plain: RunDir) -> None:
    plain.append(record(3))
    plain.write_error(FAILURE)
    assert json.loads(plain.metrics.read_text())["event"] == "train"
    assert json.loads(plain.error.read_text())["kind"] == "data"
