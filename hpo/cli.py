"""The command line: parse, call one function, print. stdout is data, stderr is talk.

Exit status: 0 done; 1 the work failed (a job, every trial); 2 the request was wrong; 130 interrupted.
Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from hpo.endings import flush_and_leave, leave, outage, terminable
from hpo.errors import HpoError, NoBestTrialError
from training.errors import TrainingError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage

    from hpo.background import Background
    from hpo.definition import StudyDefinition
    from hpo.events import Event, Listener
    from hpo.tracking import NoTracker
    from hpo.train_best import Trained
    from training.errors import Failure

IN_THE_CHECKPOINT = ("task", "seed", "data.", "model.", "lora", "embedding.", "optimizer.", "scheduler.")
"""Keys whose values a checkpoint already holds the consequences of."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(is_asked: bool) -> None:
    from importlib.metadata import version

    if is_asked:
        print(version("hpo"))
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]


@app.callback()
def hpo(version: VersionOption = False) -> None:
    """Hyperparameter search with cross-validation, where every trial is a real (distributed) training job."""


StudyOption = Annotated[str, typer.Option("--study", help="A study in studies/ by name, or a path to its YAML file.")]
EnvOption = Annotated[
    str | None,
    typer.Option("--env", metavar="NAME", help="local, colab, kaggle, cluster or ci; detected when not given."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the configuration; may be repeated."),
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        envvar="HPO_STORAGE",
        show_envvar=False,
        help="SQLAlchemy URL of the study database; also read from $HPO_STORAGE, where a password stays out of ps.",
    ),
]
LauncherOption = Annotated[
    str | None,
    typer.Option("--launcher", metavar="NAME", help="How ranks start: fork_server (warm, the default) or torchrun."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.command()
def sweep(  # noqa: PLR0913 - its parameters are the command's options
    study: StudyOption,
    folds: Annotated[
        int | None,
        typer.Option(metavar="K", help="Cross-validation folds; a study goes on with the same."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(metavar="N", help="Finished trials to reach, those of earlier runs counted.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="Start no trial after this long: 90s, 30m, 2h (seconds: 90).")
    ] = None,
    launcher: LauncherOption = None,
    settings: SetOption = None,
    env: EnvOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search: sample hyperparameters, train every fold, keep the scores. The same command again continues."""
    from hpo import show
    from hpo.console import open_console
    from hpo.launchers import warm_up
    from hpo.masking import masked
    from hpo.orchestrator import Sweep
    from hpo.preflight import preflight
    from hpo.report import describe_best
    from hpo.storage import open_storage
    from hpo.study import open_study, study_names

    options = {"cross_validation.folds": folds, "budget.trials": trials, "budget.timeout": timeout}
    given = {key: str(value) for key, value in options.items() if value is not None}
    definition = _define(study, env, _launched_by(launcher, settings), given)
    preflight(definition)
    warm_up(definition.job)
    url = _storage_url(definition, storage)
    database = open_storage(url)
    go_on = "the same command continues"
    with terminable(lambda: go_on), open_console() as console:
        tracker = _tracker(definition, console)  # it imports MLflow while the first models are built
        if definition.config.study not in study_names(database):
            _require_buildable(definition, study)
        opened = open_study(definition, database)
        run = Sweep(definition, opened, _all(tracker, console))
        run.run()
    _require_hope(run.hopeless)
    show.best(
        describe_best(opened),
        as_json=as_json,
        again=_again(study, env, settings, storage),
        tracking=tracker.where,
        storage=masked(url),
    )


@app.command()
def worker(
    study: StudyOption,
    launcher: LauncherOption = None,
    settings: SetOption = None,
    env: EnvOption = None,
    storage: StorageOption = None,
) -> None:
    """Help a study that `hpo sweep` began, from another terminal or machine, until its budget is spent."""
    from hpo.console import open_console
    from hpo.definition import has_file, joined_definition
    from hpo.launchers import warm_up
    from hpo.orchestrator import Sweep
    from hpo.study import definition_of, load_study

    database, name, _ = _open(study if has_file(study) else None, env, settings, storage)
    opened = load_study(name or study, database)
    definition = joined_definition(definition_of(opened), settings=_launched_by(launcher, settings))
    warm_up(definition.job)
    with terminable(lambda: "the other processes of the study go on"), open_console() as console:
        tracker = _tracker(definition, console)
        run = Sweep(definition, opened, _all(tracker, console))
        run.run()
    _require_hope(run.hopeless)


@app.command()
def train(
    config: Annotated[Path | None, typer.Option(help="A configuration in YAML or JSON.")] = None,
    resume: Annotated[Path | None, typer.Option(help="A run directory to go on in.")] = None,
    launcher: LauncherOption = None,
    settings: SetOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train one configuration, without a study."""
    from hpo import show
    from hpo.console import open_console
    from hpo.definition import load_job
    from hpo.preflight import preflight_job
    from hpo.tracking import connect
    from hpo.train_best import LastJob, train_one

    path = config if resume is None else resume / "config.yaml"
    if path is None or (config is not None and resume is not None):
        raise HpoError("give either --config FILE or --resume RUN_DIR")
    _require_checkpoint(resume)
    for setting in settings or () if resume else ():
        if setting.strip().startswith(IN_THE_CHECKPOINT) and not setting.strip().startswith("data.num_workers"):
            raise HpoError(f"--set {setting}: a resumed training goes on as it began; leave it out, or start a new one")
    job = load_job(path, environment=env, settings=_launched_by(launcher, settings))
    preflight_job(job)
    name, last = config.stem if config else "resumed", LastJob()
    with terminable(lambda: last.go_on("hpo train")), open_console() as console:
        tracker = connect(None, Path(job.output.root), _notice(console))
        trained = train_one(job, name, _all(tracker, console, last), resume=resume)
    _require_complete(trained, last.go_on("hpo train"))
    show.trained(trained, model_uri=None, tracking=tracker.where, as_json=as_json)


@app.command("train-best")
def train_best_command(  # noqa: PLR0913 - its parameters are the command's options
    study: StudyOption,
    resume: Annotated[Path | None, typer.Option(help="The run directory of an interrupted train-best.")] = None,
    launcher: LauncherOption = None,
    env: EnvOption = None,
    settings: SetOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the best configuration on all the data and score it on the test split that the search never saw."""
    from hpo import show
    from hpo.console import open_console
    from hpo.train_best import LastJob, train_best

    if any(not setting.strip().startswith("output.") for setting in settings or ()):
        raise HpoError("train-best replays the recorded configuration: --set takes only output.* keys here")
    _require_checkpoint(resume)
    definition, _, loaded = _opened(study, env, settings, storage)
    last, again = LastJob(), _again(study, env, settings, storage)
    with terminable(lambda: last.go_on(f"hpo train-best {again}")), open_console() as console:
        tracker = _tracker(definition, console)
        best, trained = train_best(loaded, _all(tracker, console, last), resume=resume, launcher=launcher)
        _require_complete(trained, last.go_on(f"hpo train-best {again}"))
        name, params = definition.config.study, {key: str(value) for key, value in best.params.items()}
        metrics, folder = trained.result.metrics, trained.result.run_dir.model
        uri = tracker.log_model(trained.label, folder, name=name, metrics=metrics, params=params)
    show.trained(trained, model_uri=uri, tracking=tracker.where, as_json=as_json)


@app.command()
def status(
    study: Annotated[str | None, typer.Option("--study", help="One study; all of the storage when not given.")] = None,
    env: EnvOption = None,
    settings: SetOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how far a study is, while it runs or after."""
    from hpo import show
    from hpo.report import describe_status
    from hpo.study import load_study, study_names

    database, name, _ = _open(study, env, settings, storage)
    names = [name] if name else study_names(database)
    show.status([describe_status(load_study(each, database)) for each in names], as_json=as_json)


@app.command()
def best(
    study: StudyOption,
    env: EnvOption = None,
    settings: SetOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the best trial so far: hyperparameters, score with its confidence interval, where it is."""
    from hpo import show
    from hpo.masking import masked
    from hpo.report import describe_best

    _, url, loaded = _opened(study, env, settings, storage)
    again = _again(study, env, settings, storage)
    show.best(describe_best(loaded), as_json=as_json, again=again, storage=masked(url))


@app.command()
def validate(
    study: Annotated[str | None, typer.Option("--study", help="A study in studies/ by name, or a path.")] = None,
    config: Annotated[Path | None, typer.Option(help="A configuration in YAML or JSON.")] = None,
    env: EnvOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a study or a configuration: files, keys, devices, then data and model up to the first step."""
    from hpo import show
    from hpo.definition import load_job
    from hpo.preflight import build, check_jobs, preflight, preflight_job

    typed = [part for setting in settings or () for part in ("--set", setting)]
    chosen = [*(["--env", env] if env else []), *typed]
    _require_one(config, study)
    if config is not None:
        job = load_job(config, environment=env, settings=settings or ())
        placement, check = preflight_job(job), build([job])
        if check.failures:
            leave(2, f"error: {config}: {show.check_text(check)}")
        again = shlex.join(["--config", str(config), *chosen])
        return show.valid_job(job, str(config), placement, as_json=as_json, again=again)
    definition = _define(str(study), env, settings or [])
    placement = preflight(definition)
    check = check_jobs(definition)
    if check.failures:
        leave(2, f"error: {study}: {show.check_text(check)}")
    again = shlex.join(["--study", str(study), *chosen])
    show.valid(definition, placement, as_json=as_json, again=again)


@app.command()
def plan(
    config: Annotated[Path | None, typer.Option(help="A configuration in YAML or JSON.")] = None,
    study: Annotated[
        str | None, typer.Option("--study", help="A study: its largest configuration is planned for.")
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(metavar="NxSIZE", help="GPUs of a machine, such as 4x24GB; those here when not given.")
    ] = None,
    env: EnvOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict the memory each strategy takes of a GPU, and say which to use. Needs no GPU, and trains nothing."""
    from hpo import show
    from hpo.definition import load_job
    from hpo.largest_job import largest_job
    from hpo.plan import gpus_for, make_plan

    _require_one(config, study)
    if config is not None:
        job, searched = load_job(config, environment=env, settings=settings or ()), list[str]()
    else:
        definition = _define(str(study), env, settings or [])
        job, searched = largest_job(definition), list(definition.config.search_space)
    show.plan(make_plan(job, gpus_for(gpus, job)), job, searched, as_json=as_json)


@app.command()
def dashboard(
    study: Annotated[str | None, typer.Option("--study", help="The study whose storage to open.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 8080,
    env: EnvOption = None,
    settings: SetOption = None,
    storage: StorageOption = None,
) -> None:
    """Serve optuna-dashboard on the storage, on 127.0.0.1, while a study runs or after."""
    from hpo.dashboard import serve

    opened, _, root = _open(study, env, settings, storage)
    serve(opened, root, port)


def main() -> NoReturn:
    """The ``hpo`` command: run it and exit, with mistakes of the user said in one line and no traceback."""
    try:
        app(standalone_mode=True)
    except SystemExit as done:
        flush_and_leave(done.code)
    except NoBestTrialError as error:
        leave(1, f"error: {error}")
    except (HpoError, TrainingError) as error:
        leave(2, f"error: {error}")
    except Exception as error:
        if (reason := outage(error)) is None:
            raise
        leave(1, f"error: {reason}")
    sys.exit(0)


def _again(study: str, env: str | None, settings: list[str] | None, storage: str | None) -> str:
    """The options that lead to the same study once more, as typed; what came from the environment stays there."""
    from hpo.masking import masked

    typed = ["--study", study, *(["--env", env] if env else [])]
    # Keys that say where things are; the others are in the study by now.
    typed += [part for setting in settings or () if setting.startswith("output.") for part in ("--set", setting)]
    if storage and storage != os.environ.get("HPO_STORAGE"):
        if masked(storage) != storage:
            return f'{shlex.join(typed)} --storage "$HPO_STORAGE"'  # set it to the URL: this one has a password
        typed += ["--storage", storage]
    return shlex.join(typed)


def _define(
    study: str, env: str | None, settings: list[str], options: Mapping[str, str] = MappingProxyType({})
) -> StudyDefinition:
    from hpo.definition import load_definition

    return load_definition(study, environment=env, settings=settings, options=options)


def _launched_by(launcher: str | None, settings: list[str] | None) -> list[str]:
    return [*(settings or []), *([f"distributed.launcher={launcher}"] if launcher else [])]


def _storage_url(definition: StudyDefinition, storage: str | None) -> str:
    from hpo.storage import default_url

    return storage or definition.config.storage or default_url(definition.root)


def _open(
    study: str | None, env: str | None, settings: list[str] | None, storage: str | None
) -> tuple[RDBStorage, str | None, Path]:
    """The storage, the study's name and the output folder, of a study or of the base configuration alone."""
    from hpo.definition import base_job
    from hpo.storage import default_url, open_storage

    if study is not None:
        definition = _define(study, env, settings or [])
        url = _storage_url(definition, storage)
        return open_storage(url, create=False), definition.config.study, definition.root
    root = Path(base_job(environment=env, settings=settings or ()).output.root)
    return open_storage(storage or default_url(root), create=False), None, root


def _opened(
    study: str, env: str | None, settings: list[str] | None, storage: str | None
) -> tuple[StudyDefinition, str, Study]:
    """A study that exists: its definition, the URL of its storage, and itself."""
    from hpo.storage import open_storage
    from hpo.study import load_study

    definition = _define(study, env, settings or [])
    url = _storage_url(definition, storage)
    return definition, url, load_study(definition.config.study, open_storage(url, create=False))


def _tracker(definition: StudyDefinition, console: Listener) -> Background | NoTracker:
    from hpo.tracking import connect

    return connect(definition.config.mlflow, definition.root, _notice(console))


def _notice(console: Listener) -> Callable[[str], None]:
    from hpo.events import Notice

    return lambda text: console(Notice(message=text))


def _all(*listeners: Listener) -> Listener:
    def listen(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return listen


def _require_checkpoint(resume: Path | None) -> None:
    from training.run_dir import RunDir

    if resume is not None and not resume.is_dir():
        raise HpoError(f"--resume {resume}: there is no such folder")
    if resume is not None and RunDir(resume).load_result() and RunDir(resume).last_epoch() == 0:
        raise HpoError(f"--resume {resume}: is complete; only with output.keep_checkpoint: true could it train longer")
    if resume is not None and RunDir(resume).last_epoch() == 0:
        raise HpoError(f"--resume {resume}: there is no checkpoint to go on from; train it again without --resume")


def _require_one(config: Path | None, study: str | None) -> None:
    if (config is None) == (study is None):
        raise HpoError("give either --config FILE or --study STUDY")


def _require_buildable(definition: StudyDefinition, study: str) -> None:
    """Before a study is made: its data are prepared, and models of its search space can be built on them."""
    from hpo.preflight import check_jobs
    from hpo.show import check_text

    print("note: a new study: preparing its data and building its first models", file=sys.stderr)
    check = check_jobs(definition)
    if check.num_built == 0:
        leave(2, f"error: {study}: {check_text(check)}")
    if check.failures:
        print(f"note: {check_text(check)}", file=sys.stderr)


def _require_hope(common: Failure | None) -> None:
    from hpo.show import failure_text

    if common is not None:
        leave(1, f"the first trials all failed in the same way, so the sweep ended:\n{failure_text(common)}")


def _require_complete(trained: Trained, go_on: str) -> None:
    from hpo.show import USER_MISTAKES, failure_text

    failure = trained.result.failure
    if failure is not None and failure.kind in USER_MISTAKES:
        leave(2, f"error: {failure.message}\nlogs: {trained.result.run_dir.logs}")
    if failure is not None:
        leave(1, f"the training failed: {failure_text(failure)}\nlogs: {trained.result.run_dir.logs}\n{go_on}")
