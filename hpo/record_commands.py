"""The commands on what a study has recorded: train a fold of it again, move it elsewhere. As in hpo/cli.py."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hpo.endings import leave, terminable
from hpo.masking import masked
from hpo.opening import again_options, open_recorded, place_for
from hpo.options import (
    EnvOption,
    JsonOption,
    LauncherOption,
    SetOption,
    StorageOption,
    StudyOption,
    require_output_only,
)


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

    require_output_only(settings, "replay trains what is recorded")
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


def export(  # noqa: PLR0913 - its parameters are the command's options
    study: StudyOption,
    file: Annotated[Path, typer.Argument(metavar="FILE.hpo", help="The file to write; it must not exist.")],
    without_checkpoints: Annotated[
        bool, typer.Option("--without-checkpoints", help="What may go on trains its unfinished folds from the start.")
    ] = False,
    env: EnvOption = None,
    settings: SetOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a study to one file, to keep it or to import it elsewhere; also while it runs."""
    from hpo.console import counted
    from hpo.moving.exporting import export_study
    from hpo.printing import print_json, print_next, print_rows

    opened = open_recorded(study, env, settings, storage)
    found = export_study(opened, file, with_checkpoints=not without_checkpoints)
    if as_json:
        return print_json({"study": opened.study_name, **asdict(found)})
    counts = {"trial": found.trials, "fold": found.folds, "checkpoint": found.checkpoints}
    what = ", ".join(counted(count, each) for each, count in counts.items())
    print_rows(
        [
            ("study", opened.study_name),
            ("holds", what),
            ("file", found.path),
            ("size", f"{found.size_bytes / 1e6:.3g} MB"),
        ]
    )
    print_next(f"hpo import {shlex.quote(str(file))}")


def import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE.hpo", help="What hpo export wrote.")],
    name: Annotated[str | None, typer.Option(metavar="NEW", help="Another name for the study.")] = None,
    env: EnvOption = None,
    settings: SetOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a study out of the file that it was exported to, in this storage and output folder; all of it or nothing."""
    from hpo.definition import has_file
    from hpo.moving.archive import open_archive
    from hpo.moving.importing import import_study, name_of
    from hpo.printing import print_json, print_next, print_rows

    with open_archive(file) as archive:
        database, root = place_for(name_of(archive, name), env, settings, storage)
        found = import_study(archive, database, root, name=name)
    if as_json:
        return print_json({**asdict(found), "storage": masked(database.url)})
    trials = f"{found.trials}, {found.waiting} of them waiting" if found.waiting else found.trials
    where = [("folder", found.folder), ("storage", masked(database.url))]
    print_rows([("study", found.study), ("trials", trials), *where])
    again = again_options(found.study, env, settings, storage)
    if has_file(found.study):
        return print_next(f"hpo status {again}", f"hpo sweep {again}")
    print_next(f"hpo status {again}", f"hpo worker {again}")
    print(
        f"note: hpo sweep needs studies/{found.study}.yaml, which is not in the export; hpo worker does not",
        file=sys.stderr,
    )
