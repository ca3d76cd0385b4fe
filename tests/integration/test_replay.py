"""``hpo replay``: folds of a real search, trained again from their records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tests.integration.conftest import run_hpo
from training.run_dir import Event, RunDir

TASK = """\
from training.tasks.image_classification import ImageClassification
class Task(ImageClassification):
    def build_model(self, config, data):
        model = super().build_model(config, data)
        if config.cross_validation.fold == 1:
            model.register_forward_pre_hook(act)
        return model
def act(module, inputs):
    raise ArithmeticError("a bug")
"""


def test_a_failed_trial_names_the_command_that_fails_again_and_its_good_folds_are_repeated(workplace: Path) -> None:
    Path("own.py").write_text(TASK)
    with Path("studies/digits.yaml").open("a") as study:
        study.write("resources: {parallel_folds: off}\n")
    failed = run_hpo("sweep", "--study", "digits", "--trials", "1", "--set", "task=own:Task", status=1).stderr
    assert "trial 0  FAIL  user_code: ArithmeticError: a bug" in failed
    assert 'own.py", line 9, in act' in failed and "    raise ArithmeticError" in failed
    command = "replay --study digits --trial 0 --fold 1"
    assert f"to see it fail again: {command}" in failed.replace("hpo replay", "replay").replace("-c replay", "replay")

    again = run_hpo(*command.split(), status=1)
    assert "fold 1 of trial 0 failed again\nuser_code on rank 0: ArithmeticError: a bug" in again.stderr
    assert 'own.py", line 9, in act' in again.stderr

    good = json.loads(run_hpo("replay", "--study", "digits", "--trial", "0", "--fold", "0", "--json").stdout)
    assert (good["is_sound"], good["failure"]) == (True, None)
    assert good["score"] == good["recorded"] > 0.0
    assert good["run_dir"] == str(workplace / "runs/digits/replay/trial_0000_fold_0")

    record = RunDir(Path(good["record"]))
    [first] = [each.values for each in record.records() if each.event is Event.EVALUATE and each.epoch == 1]
    assert (outcome := record.load_result()) is not None
    record.write_result(replace(outcome, stopped=True, epochs=1, metrics=first))
    stopped = run_hpo("replay", "--study", "digits", "--trial", "0", "--fold", "0").stdout
    assert "fold 0 of trial 0 was repeated exactly" in stopped and "trial_0000_fold_0-2" in stopped
