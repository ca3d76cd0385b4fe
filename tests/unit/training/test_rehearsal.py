"""A rehearsal is the real loop on nothing, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from training import rehearsal


@pytest.mark.usefixtures("ordinary_arithmetic")
def test_a_rehearsal_trains_and_scores_and_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    real = rehearsal.run_training
    monkeypatch.setattr(rehearsal, "run_training", lambda *given: results.append(real(*given)))
    monkeypatch.chdir(tmp_path)
    rehearsal.rehearse()
    [result] = results
    assert (result.epochs, result.steps, result.stopped) == (1, 2, False)
    assert result.metrics["loss"] > 0
    assert not list(tmp_path.iterdir())
