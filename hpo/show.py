"""What a command prints when it is done: text for people, one JSON object for machines; and what to type next."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo.budget import Left
from hpo.console import as_typed, counted, duration, failure_text, number, replay_command
from hpo.definition import StudyDefinition
from hpo.devices import Placement
from hpo.fold_statistics import Interval
from hpo.front_text import front_table, front_values
from hpo.plan import Plan, as_yaml, gib
from hpo.plan import name as row_name
from hpo.preflight import Check
from hpo.price import Price
from hpo.printing import print_json as _print_json
from hpo.printing import print_next as _print_next
from hpo.printing import print_rows as _print_rows
from hpo.printing import print_table as _print_table
from hpo.reporting.summary import BestTrial, StudyStatus
from hpo.selection import Choice
from hpo.study import by_kind
from hpo.train_best import Trained
from training.config import JobConfig, flatten

if TYPE_CHECKING:
    from hpo.reporting.publishing import Published
    from hpo.reporting.report import Report

Rows = Sequence[tuple[str, Any]]

MAX_SHOWN = 15
"""Trials of a report on the terminal."""


def best(
    winner: BestTrial,
    more: Rows = (),
    *,
    as_json: bool,
    again: str,
    tracking: str | None = None,
    storage: str = "",
) -> None:
    """The winner: score with its interval, hyperparameters, `more`, where everything is, the next commands.

    `again` are the options that lead to the same study once more.
    """
    if as_json:
        return _print_json({**_trial_values(winner), "storage": storage})
    where = [("storage", storage), *([("mlflow", tracking)] if tracking else [])]
    _print_rows([*_trial_rows(winner, "best trial"), *more, *where])
    _print_next(f"hpo report {again}", f"hpo train-best {again}", f"hpo dashboard {again}")


def front(
    trials: Sequence[BestTrial],
    more: Rows = (),
    *,
    as_json: bool,
    again: str,
    tracking: str | None = None,
    storage: str = "",
) -> None:
    """The Pareto front of several objectives: each trial's means with their intervals, its hyperparameters, `more`, and
    what to type next."""
    if as_json:
        return _print_json({"study": trials[0].study, "front": [*map(front_values, trials)], "storage": storage})
    print(f"\nfront of study {trials[0].study}: {len(trials)} trial{'s' * (len(trials) > 1)} that no other dominates\n")
    _print_table(front_table(trials))
    _print_rows([*more, ("storage", storage), *([("mlflow", tracking)] if tracking else [])])
    train = f"hpo train-best {again} --trial {trials[0].number}"
    _print_next(f"hpo report {again}", train, f"hpo dashboard {again}")


def failed(status: StudyStatus, again: str) -> Rows:
    """How many trials of a sweep that is over failed, and how to see the last of them fail again."""
    if not status.failures:
        return ()
    total = sum(status.trials[state] for state in ("COMPLETE", "PRUNED", "FAIL"))
    rows = [("failed", f"{sum(status.failures.values())} of {counted(total, 'trial')}: {by_kind(status.failures)}")]
    see = replay_command(again, *status.last_failed) if status.last_failed else as_typed(f"hpo status {again}")
    return [*rows, ("to see it again", see)]


def no_best(*, as_json: bool) -> None:
    """A sweep that ended as it should before any trial was complete."""
    if as_json:
        return _print_json(None)
    print("no trial is complete yet")


def report(found: Report, published: Published, *, as_json: bool, again: str) -> None:
    """What it says, its first trials, and where the whole report is."""
    where = {"page": str(published.page), "mlflow": published.mlflow}
    if as_json:
        return _print_json({**found.values, **where})
    _print_rows(found.rows)
    if found.table:
        print()
        _print_table([(*found.columns,), *found.table[:MAX_SHOWN]])
    if len(found.table) > MAX_SHOWN:
        print(f"and {len(found.table) - MAX_SHOWN} more; all with --json")
    _print_rows([("report", where["page"]), *([("mlflow", where["mlflow"])] if where["mlflow"] else [])])
    train = [] if found.train is None else [f"hpo train-best {again}{found.train}"]
    _print_next(*train, f"hpo dashboard {again}")


def chosen(choice: Choice, *, as_json: bool, again: str, chosen_by: str, storage: str) -> None:
    """The trial that train-best would train, and why; `chosen_by` are the options that choose it, after a space."""
    if as_json:
        return _print_json({**_trial_values(choice.trial), "storage": storage, **_choice_values(choice)})
    rows = _trial_rows(choice.trial, "chosen trial") + _reason_rows(choice)
    _print_rows([*rows, *[("member", member) for member in choice.members], ("storage", storage)])
    _print_next(f"hpo train-best {again}{chosen_by}")


def _trial_values(trial: BestTrial) -> dict[str, Any]:
    """As JSON has it; with several objectives, under the key of each."""
    if trial.further:
        return {"study": trial.study, **front_values(trial)}
    found = asdict(trial) | {"config": str(trial.folder / "config.yaml")}
    del found["further"]
    return found


def _trial_rows(trial: BestTrial, title: str) -> list[tuple[str, Any]]:
    return [
        (title, f"{trial.number} of study {trial.study}"),
        *((each.metric, _interval_text(each.interval)) for each in trial.judgements),
        ("folds", ", ".join(" ".join(map(number, each.fold_scores)) for each in trial.judgements)),
        *((f"  {key}", number(value) if isinstance(value, float) else value) for key, value in trial.params.items()),
        ("configuration", trial.folder / "config.yaml"),
    ]


def _interval_text(interval: Interval) -> str:
    bounds = "" if math.isnan(interval.low) else f"  (95 % interval {number(interval.low)} to {number(interval.high)})"
    return f"{number(interval.mean)}{bounds}"


def _reason_rows(choice: Choice) -> list[tuple[str, Any]]:
    """Why that trial, and what it costs; of the best one too, where that is another."""
    costs = "not known" if choice.cost_s is None else f"{number(choice.cost_s)} device-seconds a fold"
    rows = [("chosen as", choice.reason), ("cost", costs)]
    if choice.best.number != choice.trial.number:
        spent = "" if choice.best_cost_s is None else f", {number(choice.best_cost_s)} device-seconds a fold"
        rows.append(("best trial", f"{choice.best.number}: {number(choice.best.interval.mean)}{spent}"))
    return rows


def _choice_values(choice: Choice) -> dict[str, Any]:
    """The same for machines."""
    best = {"trial": choice.best.number, "mean": choice.best.interval.mean, "cost_s": choice.best_cost_s}
    members = [{"trial": member.trial.number, "fold": member.fold} for member in choice.members]
    return {
        "select": choice.select,
        "reason": choice.reason,
        "cost_s": choice.cost_s,
        "best": best,
        **({"members": members} if members else {}),
    }


def trained(job: Trained, *, choice: Choice | None = None, model_uri: str | None, tracking: str, as_json: bool) -> None:
    """A finished training: metrics, where the model is and how to load it; of a `choice` also the search's score."""
    saved = job.model if job.model.exists() else None
    if as_json:
        return _print_json({**_training_values(job, choice), "model_uri": model_uri, "mlflow": tracking})
    rows = _search_rows(choice) if choice else []
    rows += [(name, number(value)) for name, value in job.result.metrics.items()]
    rows += [("scored on", _scored_on(job.config)), ("run directory", job.result.run_dir.path)]
    rows += [(f"  {each.result.run_dir.path.name}", _metrics_text(each.result.metrics)) for each in job.members]
    rows += [("model", saved)] if saved else []
    rows += [("mlflow", tracking)]
    rows += [("registered", model_uri)] if model_uri else []
    _print_rows(rows)
    if saved:
        _print_next(*how_to_load(job.config, saved, is_ensemble=bool(job.members)), label="load it")
    if model_uri:
        registry = f"mlflow.set_tracking_uri({_quoted(tracking)})"
        download = f'mlflow.artifacts.download_artifacts({_quoted(model_uri)}, dst_path="model")'
        _print_next("import mlflow", registry, download, label="fetch it")


def _training_values(job: Trained, choice: Choice | None) -> dict[str, Any]:
    values: dict[str, Any] = {
        "metrics": job.result.metrics,
        "run_dir": str(job.result.run_dir.path),
        "model": str(job.model) if job.model.exists() else None,
        "seconds": job.result.duration_s,
        "world_size": job.result.world_size,
    }
    if choice is not None:
        search: Any = [{"metric": each.metric, **asdict(each.interval)} for each in choice.trial.judgements]
        search = search if choice.trial.further else search[0]
        values |= {**_choice_values(choice), "trial": choice.trial.number, "search": search}
        values["config"] = str(choice.trial.folder / "config.yaml")
    for member, trained in zip(values.get("members", ()), job.members, strict=False):
        member |= {"metrics": trained.result.metrics, "model": str(trained.model)}
    return values


def _search_rows(choice: Choice) -> list[tuple[str, Any]]:
    """What was trained, and the score that the search gave it."""
    return [
        ("trial", f"{choice.trial.number} of study {choice.trial.study}"),
        *_reason_rows(choice),
        ("configuration", choice.trial.folder / "config.yaml"),
        *(("in the search", f"{each.metric} {_interval_text(each.interval)}") for each in choice.trial.judgements),
    ]


def _scored_on(config: JobConfig) -> str:
    split = config.cross_validation
    return "test split" if split.fold is None or split.score == "test" else "fold"


def _metrics_text(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {number(value)}" for name, value in metrics.items())


def how_to_load(config: JobConfig, folder: Path, *, is_ensemble: bool = False) -> list[str]:
    """Python that loads the saved model."""
    if is_ensemble:
        inputs = '(["a text"])' if config.task == "text_classification" else "  # takes images in 0..1"
        return ["from training.tasks.ensemble import load_ensemble", f"load_ensemble({_quoted(folder)}){inputs}"]
    if config.lora is not None and not config.lora.merge:
        return ["from peft import PeftModel", f"PeftModel.from_pretrained(base, {_quoted(folder)})  # base: as trained"]
    if config.task == "text_classification":
        return ["from transformers import pipeline", f'pipeline("text-classification", {_quoted(folder)})("a text")']
    if config.task == "language_modeling":
        return ["from transformers import pipeline", f'pipeline("text-generation", {_quoted(folder)})("The")']
    if config.task == "embedding":
        return _how_to_load_encoder(folder)
    if config.task != "image_classification":
        return [f"# {folder} is what the save method of {config.task} wrote"]
    if config.model.pretrained is None and config.model.architecture in {"mlp", "cnn"}:
        module, call = "training.tasks.image_networks", "load_small_network"
    else:
        module, call = "transformers", "AutoModelForImageClassification.from_pretrained"
    return [f"from {module} import {call.partition('.')[0]}", f"{call}({_quoted(folder)})"]


def _how_to_load_encoder(folder: Path) -> list[str]:
    if (folder / "first").exists():
        arguments = f'{_quoted(folder)}, tower="first"'
    elif "vision_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        return ["from transformers import AutoModel", f"AutoModel.from_pretrained({_quoted(folder)})"]
    else:
        arguments = _quoted(folder)
    return ["from training.tasks.encoders import load_text_encoder", f'load_text_encoder({arguments})(["a text"])']


def _quoted(value: Path | str) -> str:
    """A Python string, in double quotes."""
    return json.dumps(str(value), ensure_ascii=False)


def status(statuses: list[StudyStatus], *, as_json: bool, again: Callable[[str], str]) -> None:
    """A table of studies, and the running trials and failures of each; `again` gives the options that lead to one."""
    if as_json:
        return _print_json([asdict(each) for each in statuses])
    for each in statuses:
        _print_rows([*_progress(each), *_troubles(each, again(each.study))])
    if not statuses:
        print("no studies yet")
        _print_next("hpo sweep --study bert_cv")


def helped(status: StudyStatus, num_trials: int, *, again: str) -> None:
    """What a worker did, how the study stands, and what to type next."""
    done = f"evaluated {counted(num_trials, 'trial')}"
    _print_rows([("this worker", done), *_progress(status)])
    judged = ("report", "train-best") if status.best_trial is not None else ("best",) if status.front else ("status",)
    commands = ("status",) if status.running else judged
    _print_next(*(f"hpo {command} {again}".strip() for command in commands))


def _progress(status: StudyStatus) -> Iterator[tuple[str, Any]]:
    states = status.trials | {"RUNNING": status.trials["RUNNING"] - len(status.lost), "LOST": len(status.lost)}
    counts = ", ".join(f"{count} {state.lower()}" for state, count in states.items() if count) or "no trials"
    yield from (("study", status.study), ("trials", counts))
    if status.best_trial is not None:
        yield "best", f"{number(status.best_value)} (trial {status.best_trial})"
    if status.front:
        trials = f"{len(status.front)} trial{'s' * (len(status.front) > 1)}"
        yield "front", f"{trials} that no other dominates: {', '.join(map(str, status.front))}"
    if status.infeasible:
        yield "infeasible", f"{status.infeasible} violate a constraint, by the folds that they ran"
    for trial in status.running:
        yield "running", _running(trial)
    if status.device_hours:
        yield "spent", f"{status.device_hours:.3g} device-hours"
    if status.left:
        yield "left", ", ".join(_left(name, left) for name, left in status.left.items())


def _troubles(status: StudyStatus, again: str) -> Iterator[tuple[str, Any]]:
    for trial in status.lost:
        yield "lost", f"{_running(trial)}: evaluated by nobody any more, {trial['why']}"
    if status.lost:
        yield "", as_typed(f"hpo sweep {again}") + f" goes on with {'them' if status.lost[1:] else 'it'}"
    if status.interrupted:
        yield "interrupted", f"{status.interrupted} (queued again, not counted)"
    for kind, count in status.failures.items():
        yield "failed", f"{count} x {kind}"
    if status.last_failure:
        yield "last failure", status.last_failure
    if status.last_failed is not None:
        yield "to see it again", replay_command(again, *status.last_failed)


def _running(trial: dict[str, Any]) -> str:
    """``trial 7, fold 2 after 3 epochs, fold 3 after 0``"""
    folds = [f"fold {fold} after {counted(epoch, 'epoch')}" for fold, epoch in trial["folds"].items()]
    return ", ".join([f"trial {trial['number']}", *(folds or [f"{counted(trial['reports'], 'epoch')} reported"])])


def _left(name: str, left: Left) -> str:
    """``13 of 20 trials``, ``0.5 of 2 device-hours``, ``0.031 to the target of 0.95``."""
    if name == "target":
        return (
            f"the target of {left.limit:g}" if left.left is None else f"{left.left:.3g} to the target of {left.limit:g}"
        )
    unit = {"device_hours": "device-hours", "patience": "trials of patience"}.get(name, name)
    return f"{left.left:.3g} of {left.limit:g} {unit}"


def valid(definition: StudyDefinition, placement: Placement, *, as_json: bool, again: str) -> None:
    """That a study is sound, and what it will do."""
    config = definition.config
    jobs = config.budget.trials * definition.job.cross_validation.num_splits
    if as_json:
        return _print_json({"study": config.study, "valid": True, "jobs": jobs, "world_size": placement.world_size})
    rows = [
        ("study", f"{config.study}: valid"),
        ("environment", definition.environment),
        ("task", definition.job.task),
        ("objective", ", ".join(f"{each.direction} {each.metric}" for each in config.objectives)),
        *(("constraint", each.text) for each in config.constraints),
        ("search space", ", ".join(config.search_space)),
        ("jobs", _jobs(config.budget.trials, definition.job.cross_validation.num_splits)),
        ("devices", _where(placement)),
        ("ends after", _limits(config.budget.model_dump(exclude_none=True))),
    ]
    _print_rows(rows)
    for notice in placement.notices:
        print(f"note: {notice}", file=sys.stderr)
    _print_next(f"hpo sweep {again}")


def _jobs(trials: int, folds: int) -> str:
    return f"{counted(trials, 'trial')} x {counted(folds, 'fold')} = {trials * folds}"


def _limits(limits: Mapping[str, Any]) -> str:
    """``20 trials or a timeout of 2h 00m, whichever comes first``"""
    phrases = {
        "trials": "{:g} trials",
        "device_hours": "{:g} device-hours",
        "target": "a target of {:g}",
        "patience": "{:g} trials without improvement",
    }
    times = ("timeout", "deadline")
    given = [f"a {key} of {duration(limit)}" for key, limit in limits.items() if key in times]
    given = [phrase.format(limits[key]) for key, phrase in phrases.items() if key in limits] + given
    return " or ".join(given) + (", whichever comes first" if given[1:] else "")


def valid_job(job: JobConfig, name: str, placement: Placement, *, as_json: bool, again: str) -> None:
    """That a configuration is sound, and what training it will do."""
    batch = job.batch_plan(placement.world_size)
    if as_json:
        return _print_json({"config": name, "valid": True, "world_size": placement.world_size, **asdict(batch)})
    shares = f"{placement.world_size} x {batch.num_micro_batches} x {batch.micro_batch_size}"
    rows = [
        ("configuration", f"{name}: valid"),
        ("task", job.task),
        ("devices", _where(placement)),
        ("batch", f"{job.training.global_batch_size} = {shares} (ranks x micro-batches x samples)"),
    ]
    _print_rows(rows)
    for notice in placement.notices:
        print(f"note: {notice}", file=sys.stderr)
    _print_next(f"hpo train {again}")


def _where(placement: Placement) -> str:
    count = placement.world_size
    return counted(count, "GPU") if placement.gpus else f"CPU, {count} process{'es' * (count != 1)}"


def price(cost: Price, *, as_json: bool) -> None:
    """What a search may come to."""
    if as_json:
        return _print_json({"price": _price(cost)})
    _print_rows([*_price_rows(cost), ("ends after", _limits(cost.limits))])


def _price(cost: Price) -> dict[str, Any]:
    expected = {"expected_device_hours": cost.measured.expected_device_hours} if cost.measured else {}
    return {**asdict(cost), "measured": {**asdict(cost.measured), **expected} if cost.measured else None}


def _price_rows(cost: Price) -> Iterator[tuple[str, Any]]:
    low, high = cost.epochs
    yield "jobs", _jobs(cost.trials, cost.folds)
    yield "epochs", f"{low} a fold" if low == high else f"{low} to {high} a fold"
    yield "samples", "all of the data" if cost.max_samples is None else f"{cost.max_samples} at most"
    measured = cost.measured
    if measured is None:
        yield "device-hours", "not known before a first fold has ended: nothing was measured yet"
        return
    yield "measured", f"{duration(measured.fold_s)} a fold ({measured.num_folds} folds of study {measured.study})"
    yield "device-hours", f"{measured.device_hours:.3g} when no trial is stopped"
    if measured.saved:
        expected = f"{measured.expected_device_hours:.3g} with what stopping saves"
        yield "", f"{expected} ({measured.saved:.0%})"


def plan(found: Plan, job: JobConfig, searched: Sequence[str], *, as_json: bool, cost: Price | None = None) -> None:
    """What each way of running `job` takes of a GPU, the one to take, and what to write for it.

    Of a study, `job` is its largest configuration, `searched` are the keys that tell it from the others, and `cost` is
    told first.
    """
    values = dict(flatten(job.model_dump(mode="json")))
    largest = {key: values.get(key) for key in searched}
    if as_json:
        of_study = {"largest": largest, "price": cost and _price(cost)} if searched else {}
        return _print_json({**asdict(found), "usable_bytes": found.gpus.usable_bytes, **of_study})
    if cost:
        price(cost, as_json=False)
    if searched:
        print("\nlargest configuration: " + ", ".join(f"{key} {value}" for key, value in largest.items()))
    size, usable = gib(found.gpus.memory_bytes), gib(found.gpus.usable_bytes)
    gpus = f"{counted(found.gpus.count, 'GPU')} of {size}, {usable} of each usable"
    rows: list[tuple[str, ...]] = [
        ("per GPU", "peak", "parameters", "gradients", "optimizer", "activations", "micro-batches", "")
    ]
    for row in found.rows:
        sizes = (row.parameters_bytes, row.gradients_bytes, row.optimizer_bytes, row.activations_bytes)
        micro_batches = f"{row.num_micro_batches} x {row.micro_batch_size}"
        verdict = "fits" if row.fits else "too large"
        rows.append((row_name(row), gib(row.peak_bytes), *map(gib, sizes), micro_batches, verdict))
    print(f"\n{gpus}\n")
    _print_table(rows)
    print(f"\ntake: {row_name(found.recommended) if found.recommended else 'none of these'}; {found.reason}")
    if found.changes:
        print(f"\n{as_yaml(found.changes)}")
    for key in found.changes.keys() & set(searched):
        print(f"\nnote: {key} is searched, which wins over this: keep only the choices that fit", file=sys.stderr)


def check_text(check: Check) -> str:
    """What kept configurations from being built."""
    total = check.num_built + len(check.failures)
    # One of those that differ in their numbers only, each line of it once.
    alike = {re.sub(r"[\d.]+", "", failure.message): failure for failure in reversed(check.failures)}
    lines = dict.fromkeys(line for failure in alike.values() for line in failure_text(failure).splitlines())
    if not check.num_built:
        return "\n".join(lines)
    return "\n".join([f"{len(check.failures)} of {total} sampled configurations cannot be built:", *lines])
