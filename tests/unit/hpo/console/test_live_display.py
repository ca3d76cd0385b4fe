"""What a terminal shows while a sweep or a job runs."""

from __future__ import annotations

from hpo.events import Notice, SweepFinished, TrialState
from tests.unit.hpo.console.played import Pass, Screen, finish, first_record, label, record, start, sweep, tell, trial
from training.run_dir import Event as RecordEvent


def test_live_shows_where_the_sweep_the_trial_and_the_fold_are() -> None:
    screen = Screen()
    *_, bar, running, fold = screen.show(
        sweep(finished=1, best=0.9),
        trial(3, lr=0.01),
        start(label(3, 0)),
        finish(label(3, 0), 0.8421),
        start(label(3, 1)),
        first_record(label(3, 1)),
        record(label(3, 1), RecordEvent.EVALUATE, 20, 1, accuracy=0.7, loss=0.9),
        record(label(3, 1), RecordEvent.TRAIN, 30, 1, loss=0.55, lr=1e-3),
    )
    assert bar.startswith("━")
    assert bar.endswith("  best 0.9000  1/3 trials  elapsed 0.0 s")
    assert running == "trial 3  1/2 folds  accuracy 0.8421  lr=0.01"
    assert fold == "  fold 1 of 2  epoch 2/3  step 30  train loss 0.5500  accuracy 0.7000"


def test_live_fold_before_its_first_record_is_starting() -> None:
    assert Screen().show(sweep(), trial(0), start(label()))[-1] == "  fold 0 of 2  starting"


def test_live_finished_trial_scrolls_above_and_leaves_the_display() -> None:
    lines = Screen().show(
        sweep(),
        trial(0, lr=0.01),
        start(label()),
        finish(label()),
        tell(0, 0.8, best=0.8),
        trial(1),
        SweepFinished(),
    )
    assert "trial 0  COMPLETE  accuracy 0.8000 (2 folds)  lr=0.01" in lines
    assert "best 0.8000 (trial 0)  1/3 trials" in lines[-1]


def test_live_shows_every_trial_that_runs() -> None:
    lines = Screen().show(sweep(), trial(0), trial(1), start(label(1)), start(label(0)))
    assert lines[-4:] == [
        "trial 0  0/2 folds",
        "  fold 0 of 2  starting",
        "trial 1  0/2 folds",
        "  fold 0 of 2  starting",
    ]


def test_live_elapsed_follows_the_clock() -> None:
    assert Screen().show(sweep(), Pass(3725))[-1].endswith("0/3 trials  elapsed 1h 02m")


def test_live_rows_are_cut_at_the_edge() -> None:
    lines = Screen(width=40).show(sweep(), trial(0, note="x" * 100), start(label()))
    assert lines[-2].startswith("trial 0  0/2 folds  note=xxx")
    assert lines[-2].endswith("…")
    assert all(len(line) <= 40 for line in lines)


def test_live_job_without_a_study_shows_all_metrics() -> None:
    job = label(None, None)
    bar, line = Screen().show(
        start(job),
        first_record(job),
        record(job, RecordEvent.TRAIN, 20, 0, loss=0.7, lr=1e-3),
        record(job, RecordEvent.EVALUATE, 20, 1, accuracy=0.8, loss=0.61),
        finish(job),
    )[-2:]
    assert bar.endswith("  bert_cv  elapsed 0.0 s")
    assert line == "epoch 1/3  step 20  train loss 0.7000  accuracy 0.8000  loss 0.6100"


def test_live_notices_are_said_once() -> None:
    lines = Screen().show(sweep(), Notice(message="no GPU"), Notice(message="no GPU"))
    assert [line for line in lines if not line.startswith("━")] == ["note: no GPU"]


def test_live_text_is_neither_markup_nor_escape() -> None:
    screen = Screen()
    evil = "[red]x[/red][/] :bomb: \x1b]0;pwned\x07\x1b[2J\x9b2J"
    lines = screen.show(
        Notice(message=evil),
        sweep(),
        trial(0, evil=evil),
        tell(0, None, state=TrialState.FAIL, reason=evil),
        trial(1, evil=evil),
    )
    assert sum("[red]x[/red][/] :bomb:" in line for line in lines) >= 3
    for forbidden in ("pwned", "\x07", "\x1b[2J", "\x9b"):
        assert forbidden not in screen.raw.getvalue()
