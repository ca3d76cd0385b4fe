"""``hpo doctor`` after a sweep was killed whose ranks had started something."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.integration.conftest import alive, kill_with_undertaker, run_hpo, start_hpo
from tests.integration.test_sweep import LONG, trials, wait_until, write_task


def test_what_a_killed_sweep_left_is_found_and_fixed(workplace: Path) -> None:
    write_task("self.steps == 1 and subprocess.Popen(['sleep', '7655'], start_new_session=True)")
    killed = start_hpo("sweep", "--study", "digits", "--set", "task=own:Task", "--trials", "1", *LONG)
    wait_until(lambda: bool(alive("sleep", "7655")), killed)
    kill_with_undertaker(killed)
    found = json.loads(run_hpo("doctor", "--study", "digits", "--json", status=1).stdout)
    problems = [each for each in found["findings"] if each["level"] == "problem"]
    assert found["problems"] == len(problems) == 2
    assert [(each["where"], each["check"]) for each in problems] == [
        ("study digits", "trials"),
        ("study digits", "processes"),
    ]
    assert {each["fix"] for each in problems} == {"hpo doctor --study digits --fix"}
    assert len(alive("sleep", "7655")) > 0, "looking changes nothing"
    mended = run_hpo("doctor", "--study", "digits", "--fix").stdout
    assert "  fixed    trials" in mended and "trial 0 queued again" in mended
    assert not alive("sleep", "7655")
    assert [trial.state.name for trial in trials()] == ["FAIL", "WAITING"]
    run_hpo("doctor", "--env", "nosuch", status=2)


def test_looking_imports_no_torch(workplace: Path) -> None:
    program = (
        "import sys; from hpo.doctor import environment; environment.probe_torch = lambda: 'no'\n"
        "from hpo.doctor.examination import examine, patient; examine(patient('digits', None, None, None))\n"
        "print({'torch', 'mlflow'} & sys.modules.keys() or 'light')"
    )
    checkout = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": checkout})
    assert done.stdout == "light\n", done.stderr
