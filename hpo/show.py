"""What a command prints when it is done: text for people, one JSON object for machines; and what to type next."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpo.console import clean, number
from hpo.definition import StudyDefinition
from hpo.devices import Placement
from hpo.plan import Plan, as_yaml, gib
from hpo.plan import name as row_name
from hpo.preflight import Check
from hpo.report import BestTrial, StudyStatus
from hpo.train_best import Trained
from training.config import JobConfig, flatten
from training.errors import Failure, FailureKind

USER_MISTAKES = (FailureKind.CONFIG, FailureKind.DATA)
"""Their message says what to do; a traceback would hide it."""


def best(winner: BestTrial, *, as_json: bool, again: str, tracking: str | None = None, storage: str = "") -> None:
    """The winner: score with its interval, hyperparameters, where everything is, the next commands.

    `again` are the options that lead to the same study once more.
    """
    if as_json:
        return _print_json({**asdict(winner), "config": str(winner.folder / "config.yaml"), "storage": storage})
    interval = winner.interval
    bounds = "" if math.isnan(interval.low) else f"  (95 % interval {number(interval.low)} to {number(interval.high)})"
    scores = " ".join(number(score) for score in winner.fold_scores)
    rows = [
        ("best trial", f"{winner.number} of study {winner.study}"),
        (winner.metric, f"{number(interval.mean)}{bounds}"),
        ("folds", f"{scores}"),
        *((f"  {key}", number(value) if isinstance(value, float) else value) for key, value in winner.params.items()),
        ("configuration", winner.folder / "config.yaml"),
        ("storage", storage),
        *([("mlflow", tracking)] if tracking else []),
    ]
    _print_rows(rows)
    _print_next(f"hpo train-best {again}", f"hpo dashboard {again}")


def trained(job: Trained, *, model_uri: str | None, tracking: str, as_json: bool) -> None:
    """A finished training: metrics, where the model is and how to load it."""
    result, model = job.result, job.result.run_dir.model
    saved = model if model.exists() else None
    if as_json:
        return _print_json(
            {
                "metrics": result.metrics,
                "run_dir": str(result.run_dir.path),
                "model": saved and str(saved),
                "model_uri": model_uri,
                "mlflow": tracking,
                "seconds": result.duration_s,
                "world_size": result.world_size,
            }
        )
    scored_on = "test split" if job.config.cross_validation.fold is None else "fold"
    rows: list[tuple[str, Any]] = [(name, number(value)) for name, value in result.metrics.items()]
    rows += [("scored on", scored_on), ("run directory", result.run_dir.path)]
    rows += [("model", saved)] if saved else []
    rows += [("mlflow", tracking)]
    rows += [("registered", model_uri)] if model_uri else []
    _print_rows(rows)
    if saved:
        _print_next(*how_to_load(job.config, saved), label="load it")
    if model_uri:
        registry = f"mlflow.set_tracking_uri({_quoted(tracking)})"
        download = f'mlflow.artifacts.download_artifacts({_quoted(model_uri)}, dst_path="model")'
        _print_next("import mlflow", registry, download, label="fetch it")


def how_to_load(config: JobConfig, folder: Path) -> list[str]:
    """Python that loads the saved model."""
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


def status(statuses: list[StudyStatus], *, as_json: bool) -> None:
    """A table of studies, and the running trials and failures of each."""
    if as_json:
        return _print_json([asdict(each) for each in statuses])
    for each in statuses:
        counts = ", ".join(f"{count} {state.lower()}" for state, count in each.trials.items() if count) or "no trials"
        rows: list[tuple[str, Any]] = [("study", each.study), ("trials", counts)]
        if each.interrupted:
            rows.append(("interrupted", f"{each.interrupted} (queued again, not counted)"))
        if each.best_trial is not None:
            rows.append(("best", f"{number(each.best_value)} (trial {each.best_trial})"))
        for kind, count in each.failures.items():
            rows.append(("failed", f"{count} x {kind}"))
        if each.last_failure:
            rows.append(("last failure", each.last_failure))
        for running in each.running:
            rows.append(("running", f"trial {running['number']}, {running['reports']} epochs reported"))
        _print_rows(rows)
    if not statuses:
        print("no studies yet")
        _print_next("hpo sweep --study bert_cv")


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
        ("objective", f"{config.objective.direction} {config.objective.metric}"),
        ("search space", ", ".join(config.search_space)),
        ("jobs", f"{config.budget.trials} trials x {definition.job.cross_validation.num_splits} folds = {jobs}"),
        ("devices", _where(placement)),
    ]
    _print_rows(rows)
    for notice in placement.notices:
        print(f"note: {notice}", file=sys.stderr)
    _print_next(f"hpo sweep {again}")


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
    return f"{placement.world_size} GPU(s)" if placement.gpus else f"CPU, {placement.world_size} process(es)"


def plan(found: Plan, job: JobConfig, searched: Sequence[str], *, as_json: bool) -> None:
    """What each way of running `job` takes of a GPU, the one to take, and what to write for it.

    Of a study, `job` is its largest configuration and `searched` are the keys that tell it from the others.
    """
    values = dict(flatten(job.model_dump(mode="json")))
    largest = {key: values.get(key) for key in searched}
    if as_json:
        usable = {"usable_bytes": found.gpus.usable_bytes}
        return _print_json({**asdict(found), **usable, **({"largest": largest} if searched else {})})
    if searched:
        print("largest configuration: " + ", ".join(f"{key} {value}" for key, value in largest.items()))
    gpus = f"{found.gpus.count} GPU(s) of {gib(found.gpus.memory_bytes)}, {gib(found.gpus.usable_bytes)} of each usable"
    table: list[tuple[str, ...]] = [
        ("per GPU", "peak", "parameters", "gradients", "optimizer", "activations", "micro-batches", "")
    ]
    for row in found.rows:
        sizes = (row.parameters_bytes, row.gradients_bytes, row.optimizer_bytes, row.activations_bytes)
        micro_batches = f"{row.num_micro_batches} x {row.micro_batch_size}"
        verdict = "fits" if row.fits else "too large"
        table.append((row_name(row), gib(row.peak_bytes), *map(gib, sizes), micro_batches, verdict))
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    print(f"\n{gpus}\n")
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
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


def failure_text(failure: Failure) -> str:
    """A failure, safe to print; with the traceback of the first failing rank where that helps the user."""
    message = "\n".join(clean(line) for line in failure.message.splitlines())
    if failure.kind in (*USER_MISTAKES, FailureKind.INFRASTRUCTURE):
        return f"{failure.kind}: {message}"
    traceback = "\n".join(textwrap.indent(clean(line), _indent(line)) for line in failure.traceback.splitlines())
    rank = "" if failure.rank is None else f" on rank {failure.rank}"
    return f"{failure.kind}{rank}: {message}" + (f"\n{traceback}" if traceback else "")


def _indent(line: str) -> str:
    return " " * (len(line) - len(line.lstrip()))


def _print_json(value: object) -> None:
    print(json.dumps(_finite(value), indent=2, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    """`value` with NaN and infinities as null, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_rows(rows: list[tuple[str, Any]]) -> None:
    width = max(len(name) for name, _ in rows)
    print()
    for name, value in rows:
        print(f"{name:<{width}}  {clean(str(value))}")


def _print_next(*commands: str, label: str = "next") -> None:
    print(f"\n{label}:")
    for command in commands:
        print(f"  {_as_typed(command)}")


def _as_typed(command: str) -> str:
    """`command` as the user's shell finds it: with the path of this ``hpo`` where that is not on it."""
    is_found = not command.startswith("hpo ") or shutil.which("hpo") is not None
    return command if is_found else shlex.quote(os.path.relpath(sys.argv[0])) + command.removeprefix("hpo")
