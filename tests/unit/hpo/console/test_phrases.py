"""How durations, numbers, hyperparameters and foreign text are written."""

from __future__ import annotations

import pytest

from hpo.console import clean, duration, number, parameters


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (4.12, "4.1 s"),
        (59.94, "59.9 s"),
        (59.96, "1m 00s"),
        (80, "1m 20s"),
        (3599.4, "59m 59s"),
        (3599.6, "1h 00m"),
        (7500, "2h 05m"),
        (100 * 3600, "100h 00m"),
        (-1, "0.0 s"),
    ],
)
def test_duration_reads_like_speech(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.839, "0.8390"),
        (-0.25, "-0.2500"),
        (0.0, "0.0000"),
        (3.2e-05, "3.2e-05"),
        (0.0012345, "0.001234"),
        (123456.7, "1.235e+05"),
        (12, "12"),
        (float("nan"), "nan"),
    ],
)
def test_number_keeps_what_distinguishes_scores(value: float | None, text: str) -> None:
    assert number(value) == text


def test_parameters_are_written_as_in_yaml() -> None:
    params = {"optimizer.lr": 0.0012, "training.global_batch_size": 32, "tied": True, "subset": None}
    assert parameters(params) == "optimizer.lr=0.0012 training.global_batch_size=32 tied=true subset=null"


@pytest.mark.parametrize(
    ("dirty", "tidy"),
    [
        ("\x1b[31;1mred\x1b[0m", "red"),
        ("\x9b2Jgone", "gone"),
        ("\x1b]0;title\x07text\x1b]8;;http://x\x1b\\link", "textlink"),
        ("\x1bcreset \x07bell\x00", "creset bell"),
        ("one\n    two\r\nthree\u2028four\tfive", "one two three four five"),
        ("trial 3  fold 2/5", "trial 3  fold 2/5"),
        ("abc\u202edcba\u200b", "abcdcba"),
        ("\ud800 naïve 模型", "naïve 模型"),
    ],
)
def test_clean_leaves_one_visible_line(dirty: str, tidy: str) -> None:
    assert clean(dirty) == tidy
