"""The command line: parse, call one function, print. stdout is data, stderr is talk.

Exit status: 0 done; 1 the work failed (a job, every trial); 2 the request was wrong; 130 interrupted; 143 told to
leave (SIGTERM).
Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from hpo.endings import flush_and_leave, leave, outage, terminable
from hpo.errors import DeviceError, DiskFullError, HpoError, MismatchError, NoBestTrialError
from hpo.masking import mask_command_line
from hpo.opening import (
    again_options,
    all_of,
    chosen_by,
    define,
    launched_by,
    notice_to,
    open_any,
    open_existing,
    price,
    require_resumable,
    storage_url,
    tracker_of,
)
from hpo.options import (
    ConfigOption,
    DeadlineOption,
    EnvOption,
    JsonOption,
    LauncherOption,
    OneStudyOption,
    SelectOption,
    SetOption,
    StorageOption,
    StudyOption,
    TopKOption,
    TrialOption,
    require_output_only,
)
from hpo.record_commands import export, import_command, replay
from training.errors import TrainingError

if TYPE_CHECKING:
    from hpo.definition import StudyDefinition
    from hpo.orchestrator import Sweep
    from hpo.train_best import Trained

IN_THE_CHECKPOINT = (
    "task",
    "seed",
    "data.",
    "model.",
    "lora",
    "embedding.",
    "optimizer.",
    "scheduler.",
    "training.global_batch_size",
)
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
    deadline: DeadlineOption = None,
    launcher: LauncherOption = None,
    settings: SetOption = None,
    env: EnvOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search: sample hyperparameters, train every fold, keep the scores. The same command again continues."""
    began = time.monotonic()
    from optuna.trial import TrialState

    from hpo import show
    from hpo.console import open_console
    from hpo.launchers import warm_up
    from hpo.masking import masked
    from hpo.orchestrator import Sweep
    from hpo.preflight import preflight
    from hpo.reporting.summary import describe_best, describe_front, describe_status
    from hpo.storage import open_storage
    from hpo.study import open_study, study_names
    from hpo.tally import tally_of

    options = {"cross_validation.folds": folds, "budget.trials": trials, "budget.timeout": timeout}
    options |= {"budget.deadline": deadline}
    given = {key: str(value) for key, value in options.items() if value is not None}
    definition = define(study, env, launched_by(launcher, settings), given)
    preflight(definition)
    warm_up(definition.job)
    url = storage_url(definition, storage)
    database = open_storage(url)
    again, go_on = again_options(study, env, settings, storage), "the same command continues"
    with terminable(lambda: go_on), open_console(again=again) as console:
        tracker = tracker_of(definition, console)  # it imports MLflow while the first models are built
        if definition.config.study not in study_names(database):
            _require_buildable(definition, study)
        opened = open_study(definition, database, notice_to(console))
        run = Sweep(definition, opened, all_of(tracker, console), began=began)
        run.run()
    _require_hope(run)
    if definition.config.budget.deadline is not None and not tally_of(opened).states()[TrialState.COMPLETE]:
        return show.no_best(as_json=as_json)  # it said what is parked, and how to go on
    where, more = masked(url), show.failed(describe_status(opened), again)
    if len(definition.config.objectives) > 1:
        front = describe_front(opened)
        return show.front(front, more, as_json=as_json, again=again, tracking=tracker.where, storage=where)
    show.best(describe_best(opened), more, as_json=as_json, again=again, tracking=tracker.where, storage=where)


@app.command()
def worker(
    study: StudyOption,
    launcher: LauncherOption = None,
    settings: SetOption = None,
    env: EnvOption = None,
    storage: StorageOption = None,
) -> None:
    """Help a study that `hpo sweep` began, from another terminal or machine, until its budget is spent."""
    began = time.monotonic()
    from hpo import show
    from hpo.console import open_console
    from hpo.definition import joined_definition
    from hpo.launchers import warm_up
    from hpo.orchestrator import Sweep
    from hpo.patience import OUTAGE_S
    from hpo.reporting.summary import describe_status
    from hpo.study import definition_of, load_study

    database, name, _ = open_any(study, env, settings, storage)
    database.patience.lasts_s = OUTAGE_S
    opened = load_study(name or study, database)
    definition = joined_definition(definition_of(opened), settings=launched_by(launcher, settings))
    warm_up(definition.job)
    again = again_options(study, env, settings, storage)
    with terminable(lambda: "the other processes of the study go on"), open_console(again=again) as console:
        tracker = tracker_of(definition, console)
        run = Sweep(definition, opened, all_of(tracker, console), began=began)
        run.run()
    _require_hope(run)
    show.helped(describe_status(opened), run.num_told, again=again)


@app.command()
def train(
    config: ConfigOption = None,
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
    require_resumable(resume)
    for setting in settings or () if resume else ():
        if setting.strip().startswith(IN_THE_CHECKPOINT) and not setting.strip().startswith("data.num_workers"):
            raise HpoError(f"--set {setting}: a resumed training goes on as it began; leave it out, or start a new one")
    job = load_job(path, environment=env, settings=launched_by(launcher, settings))
    preflight_job(job)
    name, last = config.stem if config else "resumed", LastJob()
    with terminable(lambda: last.go_on("hpo train")), open_console() as console:
        tracker = connect(None, Path(job.output.root), notice_to(console))
        trained = train_one(job, name, all_of(tracker, console, last), resume=resume)
    _require_complete(trained, last.go_on("hpo train"))
    show.trained(trained, model_uri=None, tracking=tracker.where, as_json=as_json)


@app.command("train-best")
def train_best_command(  # noqa: PLR0913 - its parameters are the command's options
    study: StudyOption,
    select: SelectOption = "best",
    top_k: TopKOption = None,
    trial: TrialOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="First repeat fold 0 from its record; train nothing if its score differs.")
    ] = False,
    resume: Annotated[Path | None, typer.Option(help="The run directory of an interrupted train-best.")] = None,
    launcher: LauncherOption = None,
    env: EnvOption = None,
    settings: SetOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the chosen configuration on all the data and score it on the test split that the search never saw."""
    from hpo import show, verification
    from hpo.console import open_console
    from hpo.ensemble import train_ensemble
    from hpo.mlflow_runs import Model
    from hpo.selection import chosen_trial
    from hpo.train_best import LastJob, train_best

    require_output_only(settings, "train-best replays the recorded configuration")
    train = train_ensemble if select == "ensemble" else train_best
    require_resumable(resume if train is train_best else None)
    definition, _, loaded = open_existing(study, env, settings, storage)
    choice, again = chosen_trial(loaded, select, top_k, trial), again_options(study, env, settings, storage)
    last, again = LastJob(is_member=bool(choice.members)), f"hpo train-best {again}{chosen_by(select, top_k, trial)}"
    with terminable(lambda: last.go_on(again)), open_console() as console:
        tracker = tracker_of(definition, console)
        if verify:
            verification.require_score(record := verification.recorded_fold(loaded, choice.trial.number, 0))
            repeated = verification.replay(loaded, record, all_of(tracker, console), launcher=launcher)
            _require_complete(repeated, "that was fold 0, trained again for --verify; nothing else was trained")
            notice_to(console)(verification.agreement(record, repeated))
        trained = train(loaded, choice, all_of(tracker, console, last), resume=resume, launcher=launcher)
        _require_complete(trained, last.go_on(again))
        name, metrics, tags = definition.config.study, trained.result.metrics, choice.tags
        model = Model(folder=trained.model, name=name, metrics=metrics, params=choice.params, tags=tags)
        uri = tracker.log_model(trained.label, model)
    show.trained(trained, choice=choice, model_uri=uri, tracking=tracker.where, as_json=as_json)


app.command()(replay)
app.command()(export)
app.command("import")(import_command)


@app.command()
def status(
    study: OneStudyOption = None,
    env: EnvOption = None,
    settings: SetOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how far a study is, while it runs or after."""
    from hpo import show
    from hpo.reporting.summary import describe_status
    from hpo.study import load_study, study_names

    database, name, _ = open_any(study, env, settings, storage)
    names = [name] if name else study_names(database)
    found = [describe_status(load_study(each, database)) for each in names]
    show.status(found, as_json=as_json, again=lambda name: again_options(study or name, env, settings, storage))


@app.command()
def best(  # noqa: PLR0913 - its parameters are the command's options
    study: StudyOption,
    select: SelectOption = "best",
    top_k: TopKOption = None,
    trial: TrialOption = None,
    env: EnvOption = None,
    settings: SetOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the best trial so far, or another as train-best would choose it; with several objectives, the front."""
    from hpo import show
    from hpo.masking import masked
    from hpo.reporting.summary import describe_best, describe_front
    from hpo.selection import chosen_trial, what_is_gone

    _, url, loaded = open_existing(study, env, settings, storage)
    again, by = again_options(study, env, settings, storage), chosen_by(select, top_k, trial)
    if len(loaded.directions) > 1 and not by:
        return show.front(describe_front(loaded), as_json=as_json, again=again, storage=masked(url))
    if by:
        choice = chosen_trial(loaded, select, top_k, trial)
        return show.chosen(choice, as_json=as_json, again=again, chosen_by=by, storage=masked(url))
    show.best(winner := describe_best(loaded), as_json=as_json, again=again, storage=masked(url))
    if gone := what_is_gone(loaded, winner):
        print(f"note: {gone}", file=sys.stderr)


@app.command()
def report(
    study: StudyOption,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="The page; report.html in the study's folder if not given.")
    ] = None,
    env: EnvOption = None,
    settings: SetOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how good the winner is and how sure that is, or the front: intervals, ties, corrected score, costs, plots."""
    from hpo import show
    from hpo.reporting.publishing import publish
    from hpo.reporting.report import report_on

    definition, _, loaded = open_existing(study, env, settings, storage)
    found = report_on(loaded)
    published = publish(definition, loaded, found, lambda text: print(f"note: {text}", file=sys.stderr), output)
    again = again_options(study, env, settings, storage)
    show.report(found, published, as_json=as_json, again=again)


@app.command()
def validate(
    study: Annotated[str | None, typer.Option("--study", help="A study in studies/ by name, or a path.")] = None,
    config: ConfigOption = None,
    env: EnvOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a study or a configuration: files, keys, devices; then build data and model, and train nothing."""
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
    definition = define(str(study), env, settings or [])
    placement = preflight(definition)
    check = check_jobs(definition)
    if check.failures:
        leave(2, f"error: {study}: {show.check_text(check)}")
    again = shlex.join(["--study", str(study), *chosen])
    show.valid(definition, placement, as_json=as_json, again=again)


@app.command()
def plan(  # noqa: PLR0913 - its parameters are the command's options
    config: ConfigOption = None,
    study: Annotated[
        str | None, typer.Option("--study", help="A study: its price, and the memory of its largest configuration.")
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(metavar="NxSIZE", help="GPUs of a machine, such as 4x24GB; those here when not given.")
    ] = None,
    env: EnvOption = None,
    settings: SetOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict what a search costs, and the memory each strategy takes of a GPU. Needs no GPU, and trains nothing."""
    from hpo import show
    from hpo.definition import load_job
    from hpo.largest_job import largest_job
    from hpo.plan import gpus_for, make_plan

    _require_one(config, study)
    if config is not None:
        job = load_job(config, environment=env, settings=settings or ())
        return show.plan(make_plan(job, gpus_for(gpus, job)), job, [], as_json=as_json)
    definition = define(str(study), env, settings or [])
    cost = price(definition, storage)
    try:
        gpus_for(gpus, definition.job)
    except DeviceError as error:
        print(f"note: memory is not planned: {error}", file=sys.stderr)
        return show.price(cost, as_json=as_json)
    job, searched = largest_job(definition), list(definition.config.search_space)
    show.plan(make_plan(job, gpus_for(gpus, job)), job, searched, as_json=as_json, cost=cost)


@app.command()
def doctor(
    study: OneStudyOption = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Do what is safe: nothing of use is lost, nothing alive ends.")
    ] = False,
    env: EnvOption = None,
    settings: SetOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look for what is wrong with this machine, the storage and its studies; say what mends it. Exits 1 if it is."""
    from hpo.doctor.examination import examine, patient
    from hpo.doctor.text import num_problems, print_findings

    found = examine(patient(study, env, settings, storage), fix=fix)
    print_findings(found, as_json=as_json)
    raise typer.Exit(1 if num_problems(found) else 0)


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

    opened, _, root = open_any(study, env, settings, storage)
    serve(opened, root, port)


def main() -> NoReturn:
    """The ``hpo`` command: run it and exit, with mistakes of the user said in one line and no traceback."""
    mask_command_line()
    try:
        app(standalone_mode=True)
    except SystemExit as done:
        flush_and_leave(done.code)
    except (NoBestTrialError, MismatchError, DiskFullError) as error:
        leave(1, f"error: {error}")
    except (HpoError, TrainingError) as error:
        leave(2, f"error: {error}")
    except Exception as error:
        if (reason := outage(error)) is None:
            raise
        leave(1, f"error: {reason}")
    sys.exit(0)


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


def _require_hope(run: Sweep) -> None:
    from hpo.console import failure_text

    if run.hopeless is not None:
        leave(1, f"{run.gave_up}, so the sweep ended:\n{failure_text(run.hopeless)}")


def _require_complete(trained: Trained, go_on: str) -> None:
    from hpo.console import USER_MISTAKES, failure_text

    failure = trained.result.failure
    if failure is not None and failure.kind in USER_MISTAKES:
        leave(2, f"error: {failure.message}\nlogs: {trained.result.run_dir.logs}")
    if failure is not None:
        leave(1, f"the training failed: {failure_text(failure)}\nlogs: {trained.result.run_dir.logs}\n{go_on}")
