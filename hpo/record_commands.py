"""The commands on what a study has recorded: train a fold of it again, move it elsewhere. As in hpo/cli.py."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from hpo.endings import leave, terminable
from hpo.errors import HpoError
from hpo.opening import open_recorded
from hpo.options import EnvOption, JsonOption, LauncherOption, SetOption, StorageOption, StudyOption


def replay(  # noqa: PLR0913 - its parameters are the command's options
    study: StudyOption,
    trial: Annotated[int, typer.Option("--trial", min=0, metavar="N", help="The trial, by its number.")],
    fold: Annotated[int, typer.Option("--fold", min=0, metavar="F", help="Its fold; they count from 0.")],
    launcher: LauncherOption = None,
    env: EnvOption = None,
    settings: SetOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train one recorded fold again, from its record: whether it has its score, or how it fails (exit 1)."""
    from hpo import verification
    from hpo.console import open_console
    from hpo.printing import print_json, print_rows

    if any(not setting.strip().startswith("output.") for setting in settings or ()):
        raise HpoError("replay trains what is recorded: --set takes only output.* keys here")
    opened = open_recorded(study, env, settings, storage)
    record = verification.recorded_fold(opened, trial, fold)
    with terminable(lambda: "the same command starts again"), open_console() as console:
        repeated = verification.replay(opened, record, console, launcher=launcher)
    found, run_dir = verification.verdict(record, repeated), repeated.result.run_dir
    score = None if found.failure else repeated.result.metrics.get(record.metric or "")
    if as_json:
        failures = {"recorded_failure": record.failure, "failure": found.failure}
        print_json(
            {"study": opened.study_name, "trial": trial, "fold": fold, "metric": record.metric}
            | {"recorded": record.score, "score": score, "is_sound": found.is_sound, "says": found.text}
            | {key: failure and asdict(failure) for key, failure in failures.items()}
            | {"record": str(record.run_dir.path), "run_dir": str(run_dir.path)}
        )
    else:
        print_rows([("recorded in", record.run_dir.path), ("trained again in", run_dir.path)])
    if not found.is_sound:
        leave(1, f"{found.text}\nlogs: {run_dir.logs}")
    if not as_json:
        print_rows([("result", found.text)])
