"""What a log file holds of a sweep or a job."""

from __future__ import annotations

import io
from dataclasses import replace

from hpo.console import PlainConsole, as_typed, open_console
from hpo.events import JobFinished, Notice, SweepFinished, TrialFinished, TrialState
from hpo.trial import JobStatus
from tests.unit.hpo.console.played import finish, first_record, label, plain, record, start, sweep, tell, trial
from training.errors import Failure, FailureKind
from training.run_dir import Event as RecordEvent


def test_plain_sweep_is_a_line_per_start_fold_and_verdict() -> None:
    params = {"optimizer.lr": 0.0012}
    assert plain(
        sweep(finished=1, best=0.75),
        trial(3, **params),
        start(label(3, 0)),
        first_record(label(3, 0)),
        record(label(3, 0), RecordEvent.TRAIN, 10, 0, loss=0.7, lr=1e-3),
        record(label(3, 0), RecordEvent.EVALUATE, 20, 1, accuracy=0.8),
        finish(label(3, 0), 0.8421),
        start(label(3, 1)),
        finish(label(3, 1), 0.8),
        tell(3, 0.82105, best=0.82105),
        SweepFinished(),
    ) == [
        "trial 3  started  optimizer.lr=0.0012",
        "trial 3  fold 0 of 2  accuracy 0.8421  4.1 s",
        "trial 3  fold 1 of 2  accuracy 0.8000  4.1 s",
        "trial 3  COMPLETE  accuracy 0.8210 (2 folds)  best 0.8210 (trial 3)  2/3 trials",
    ]


def test_plain_shows_every_objective_and_the_size_of_the_front() -> None:
    several = replace(sweep(), metric=("accuracy", "loss"), direction=("maximize", "minimize"))
    told = replace(tell(4, None), value=(0.8, 0.5), fold_scores=((0.8, 0.5), (0.8, 0.5)), front=(2, 4))
    lines = plain(several, trial(4), start(label(4, 0)), finish(label(4, 0)), told)
    assert lines[1:] == [
        "trial 4  fold 0 of 2  accuracy 0.8000  loss 0.5000  4.1 s",
        "trial 4  COMPLETE  accuracy 0.8000  loss 0.5000 (2 folds)  front of 2  1/3 trials",
    ]


def failed(number: int, fold: int | None, message: str = "ValueError: no") -> TrialFinished:
    failure = Failure(kind=FailureKind.USER_CODE, message=message, rank=1, traceback="Traceback:\n  own.py\x1b[0m, 3")
    told = tell(number, None, state=TrialState.FAIL, reason=f"user_code: {message}")
    return replace(told, failure=failure, failed_fold=fold)


def test_a_failed_trial_has_the_traceback_of_its_rank_and_the_command_that_repeats_it() -> None:
    stream = io.StringIO()
    console = PlainConsole(stream, again="--study bert_cv")
    for event in (sweep(), failed(0, 2, "loss 1"), failed(1, 0, "loss 2"), failed(2, None)):
        console(event)
    first, second, third = (f"trial {number}  FAIL  user_code: " for number in range(3))
    command = "to see it fail again: hpo replay --study bert_cv"
    lines = stream.getvalue().replace(as_typed("hpo "), "hpo ").splitlines()
    assert lines == [
        f"{first}loss 1  1/3 trials",
        "  on rank 1:",
        "  Traceback:",
        "    own.py, 3",
        f"  {command} --trial 0 --fold 2",
        f"{second}loss 2  2/3 trials",  # alike: its traceback is above
        f"  {command} --trial 1 --fold 0",
        f"{third}ValueError: no  3/3 trials",  # before any fold
    ]


def test_plain_failure_says_why_and_keeps_the_best() -> None:
    lines = plain(
        sweep(finished=1, best=0.75),
        trial(4),
        start(label(4, 0)),
        finish(label(4, 0), status=JobStatus.FAILED),
        tell(4, None, best=0.75, state=TrialState.FAIL, reason="oom: CUDA out of memory"),
    )
    assert lines[1:] == [
        "trial 4  fold 0 of 2  failed  oom  4.1 s",
        "trial 4  FAIL  oom: CUDA out of memory  best 0.7500  2/3 trials",
    ]


def test_plain_pruned_trial_shows_the_fold_that_stopped() -> None:
    lines = plain(
        sweep(),
        trial(4),
        start(label(4, 1)),
        finish(label(4, 1), 0.3, status=JobStatus.STOPPED),
        tell(4, 0.3, best=0.75, state=TrialState.PRUNED),
    )
    assert lines[1:] == [
        "trial 4  fold 1 of 2  stopped  accuracy 0.3000  4.1 s",
        "trial 4  PRUNED  accuracy 0.3000 (2 folds)  best 0.7500  1/3 trials",
    ]


def test_plain_fold_that_left_a_checkpoint_to_go_on_from_is_paused_and_not_stopped() -> None:
    paused = finish(label(4, 1), 0.3, status=JobStatus.STOPPED, paused_at=3)
    assert plain(sweep(), trial(4), start(label(4, 1)), paused)[1:] == [
        "trial 4  fold 1 of 2  paused at epoch 3  accuracy 0.3000  4.1 s"
    ]


def test_plain_interrupted_fold_has_no_line() -> None:
    interrupted = JobFinished(label=label(), result=None)
    lines = plain(sweep(), trial(0), start(label()), interrupted, SweepFinished(interrupted=True))
    assert lines == ["trial 0  started"]


def test_plain_verdict_of_a_trial_that_never_started() -> None:
    lines = plain(sweep(), tell(0, None, state=TrialState.FAIL, reason="config: batch size 7"))
    assert lines == ["trial 0  FAIL  config: batch size 7  1/3 trials"]


def test_best_keeps_its_trial_until_another_is_better() -> None:
    lines = plain(sweep(), trial(0), tell(0, 0.8, best=0.8), trial(1), tell(1, 0.7, best=0.8))
    assert lines[-1] == "trial 1  COMPLETE  accuracy 0.7000 (2 folds)  best 0.8000 (trial 0)  2/3 trials"


def test_best_of_another_worker_names_no_trial_of_ours() -> None:
    lines = plain(sweep(), trial(0), tell(0, 0.8, best=0.8), trial(1), tell(1, 0.7, best=0.9))
    assert lines[-1] == "trial 1  COMPLETE  accuracy 0.7000 (2 folds)  best 0.9000  2/3 trials"


def test_notices_are_said_once() -> None:
    assert plain(Notice(message="no GPU"), Notice(message="no GPU"), Notice(message="slow disk")) == [
        "note: no GPU",
        "note: slow disk",
    ]


def test_plain_job_without_a_study_is_a_line_per_epoch() -> None:
    job = label(None, None)
    assert plain(
        start(job),
        first_record(job),
        record(job, RecordEvent.TRAIN, 20, 0, loss=0.7, lr=1e-3),
        record(job, RecordEvent.EVALUATE, 20, 1, accuracy=0.8, loss=0.61),
        record(job, RecordEvent.EVALUATE, 40, 2, accuracy=0.9, loss=0.5),
        finish(job),
    ) == [
        "bert_cv  epoch 1/3  step 20  train loss 0.7000  accuracy 0.8000  loss 0.6100",
        "bert_cv  epoch 2/3  step 40  train loss 0.7000  accuracy 0.9000  loss 0.5000",
    ]


def test_plain_text_cannot_forge_a_line_or_an_escape() -> None:
    reason = "boom\ntrial 0  COMPLETE\x1b[2J"
    lines = plain(sweep(), trial(0, name="a\r\x1b[31mb"), tell(0, None, state=TrialState.FAIL, reason=reason))
    assert lines == ["trial 0  started  name=a b", "trial 0  FAIL  boom trial 0  COMPLETE  1/3 trials"]


def test_plain_lines_are_flushed_one_by_one() -> None:
    class Buffered(io.StringIO):
        flushed = ""

        def flush(self) -> None:
            self.flushed = self.getvalue()

    stream = Buffered()
    with open_console(stream) as console:
        console(Notice(message="one"))
        assert stream.flushed == "note: one\n"
        console(Notice(message="two"))
        assert stream.flushed == "note: one\nnote: two\n"
