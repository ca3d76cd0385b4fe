"""Which trial of a study to train for good: the best one, the cheapest that is as good, or the folds of several.

    best                 the trial with the best mean over its folds
    one-standard-error   the cheapest of the trials whose mean is within one standard error of the best one's (Breiman
                         et al. 1984, "Classification and Regression Trees"; Hastie et al., "The Elements of
                         Statistical Learning", 7.10): their scores do not tell them apart, what they cost does
    ensemble             the folds of the best trial, then those of the next one: their models are to be averaged
    trial                the one that was named; with several objectives, of the Pareto front

Trials are chosen among those that are complete and violate no constraint. What a trial costs was measured in the
search: the device-seconds of a fold on average, from its first record to its last evaluation.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.console import number
from hpo.errors import HpoError
from hpo.fold_statistics import standard_error
from hpo.front import front_of
from hpo.reporting.summary import BestTrial, describe_trial
from hpo.study import (
    IDENTITY,
    SPLIT_ID,
    best_trial,
    is_feasible,
    require_one_objective,
    that_keeps,
    trial_folder,
)
from training.errors import DataError
from training.run_dir import Event, Record, RunDir

Select = Literal["best", "one-standard-error", "ensemble"]

AVERAGED = ("text_classification", "image_classification")
"""Tasks whose models give probabilities of the same classes, so that their mean says something."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A fold of a searched trial, whose model is to be one of an ensemble."""

    trial: BestTrial
    fold: int

    @property
    def name(self) -> str:
        """``trial_0003_fold_1``"""
        return f"{self.trial.folder.name}_fold_{self.fold}"

    def __str__(self) -> str:
        return f"trial {self.trial.number} fold {self.fold}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The trial that was chosen, why, and the best one beside it."""

    select: Select | Literal["trial"]
    trial: BestTrial
    best: BestTrial
    reason: str
    cost_s: float | None
    """Device-seconds of a fold of `trial`; None when its records are gone."""
    best_cost_s: float | None
    members: tuple[Member, ...] = ()
    """Of an ensemble, the best ones first."""

    @property
    def params(self) -> dict[str, str]:
        """Hyperparameters; none where the members of an ensemble differ in them."""
        is_one = len({member.trial.number for member in self.members}) < 2
        return {key: str(value) for key, value in self.trial.params.items()} if is_one else {}

    @property
    def tags(self) -> dict[str, str]:
        """What MLflow is to say of the choice."""
        members = {"hpo.members": ", ".join(map(str, self.members))} if self.members else {}
        return {"hpo.select": self.select, "hpo.selected_trial": str(self.trial.number), **members}


def choose(study: optuna.Study, select: Select = "best", *, top_k: int | None = None) -> Choice:
    """The trial of `study` that `select` means; an ensemble has `top_k` members (None: the folds of the best trial).

    Raises NoBestTrialError, and HpoError when the ensemble would make no sense or there are not so many folds.
    """
    if top_k is not None and select != "ensemble":
        raise HpoError("--top-k says how many models to average: add --select ensemble, or leave it out")
    require_one_objective(study, "name one of the front with --trial, without --select")
    ranked = _ranked(study)
    if select == "one-standard-error":
        return _cheapest(study, ranked)
    if select == "ensemble":
        return _ensemble(study, ranked, top_k)
    best = describe_trial(study, ranked[0])
    cost, reason = fold_cost(best.folder), f"the best mean of {len(ranked)} completed trial{'s' * (len(ranked) > 1)}"
    return Choice(select=select, trial=best, best=best, reason=reason, cost_s=cost, best_cost_s=cost)


def chosen_trial(study: optuna.Study, select: Select, top_k: int | None, number: int | None) -> Choice:
    """Trial `number` when it is named, else the one that `select` means, to be trained.

    Raises as both do, and HpoError when the folder of that trial is gone.
    """
    if number is not None and (select != "best" or top_k is not None):
        raise HpoError("--trial names the trial: leave --select and --top-k out")
    choice = choose(study, select, top_k=top_k) if number is None else _named(study, number)
    if gone := what_is_gone(study, choice.trial):
        raise HpoError(gone)
    return choice


def what_is_gone(study: optuna.Study, trial: BestTrial) -> str:
    """Why `trial` cannot be trained, and which one can; empty when its folder is there."""
    if trial.folder.is_dir():
        return ""
    known = _ranked(study) if len(study.directions) == 1 else front_of(study)
    there = next((each.number for each in known if trial_folder(study, each).is_dir()), None)
    go_on = f"--trial {there} takes the best one that is there"
    if there is None:
        go_on = "no other is there: is this the machine, or the folder, that the study ran in?"
    return f"the folder of trial {trial.number}, with the configuration to train, is gone: {trial.folder}; {go_on}"


def _named(study: optuna.Study, number: int) -> Choice:
    """Trial `number`, whatever the others scored; with several objectives it must be on the front.

    Raises NoBestTrialError, and HpoError naming those to choose from.
    """
    is_one = len(study.directions) == 1
    known = _ranked(study) if is_one else front_of(study)
    found = next((trial for trial in known if trial.number == number), None)
    if found is None:
        numbers = ", ".join(str(trial.number) for trial in known)
        what = f"no completed trial{that_keeps(study)}" if is_one else "not on the front"
        raise HpoError(f"--trial {number} is {what} in study '{study.study_name}'; take one of {numbers}")
    trial, best = describe_trial(study, found), describe_trial(study, known[0] if is_one else found)
    reason = "named by --trial" if is_one else f"named by --trial, of a front of {len(known)}"
    cost, best_cost = fold_cost(trial.folder), fold_cost(best.folder)
    return Choice(select="trial", trial=trial, best=best, reason=reason, cost_s=cost, best_cost_s=best_cost)


def _ranked(study: optuna.Study) -> list[FrozenTrial]:
    """The trials to choose from, the best one first."""
    best = best_trial(study)
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    feasible = [trial for trial in trials if is_feasible(trial)]
    return sorted(feasible, key=lambda trial: (-_gain(study, trial), trial.number != best.number, trial.number))


def _gain(study: optuna.Study, trial: FrozenTrial) -> float:
    """The trial's value, turned so that more is better."""
    assert trial.value is not None
    return trial.value if study.direction is StudyDirection.MAXIMIZE else -trial.value


def _cheapest(study: optuna.Study, ranked: list[FrozenTrial]) -> Choice:
    best = describe_trial(study, ranked[0])
    error = standard_error(best.fold_scores, folds=study.user_attrs[IDENTITY]["config"]["cross_validation.folds"])
    limit = _gain(study, ranked[0]) - error
    near = [describe_trial(study, trial) for trial in ranked if _gain(study, trial) >= limit] or [best]
    costs = {trial.number: cost for trial in near if (cost := fold_cost(trial.folder)) is not None}
    # The first of equals is the one with the better value.
    chosen = min((trial for trial in near if trial.number in costs), key=lambda t: costs[t.number], default=best)
    bound, sign = ("at least", 1) if study.direction is StudyDirection.MAXIMIZE else ("at most", -1)
    within = (
        f"whose {best.metric} is {bound} {number(sign * limit)}, one standard error ({number(error)}) from the best"
    )
    reason = f"the cheapest of {len(near)} trial{'s' * (len(near) > 1)} {within}"
    unknown = len(near) - len(costs)
    reason += f"; what {unknown} of them cost is not known, as their records are gone" if unknown else ""
    return Choice(
        select="one-standard-error",
        trial=chosen,
        best=best,
        reason=reason,
        cost_s=costs.get(chosen.number),
        best_cost_s=costs.get(best.number),
    )


def _ensemble(study: optuna.Study, ranked: list[FrozenTrial], top_k: int | None) -> Choice:
    best = describe_trial(study, ranked[0])
    members, gone = _members(study, ranked, top_k or len(best.fold_scores))
    trial, num_trials = members[0].trial, len({member.trial.number for member in members})
    reason = f"{len(members)} folds of the best {f'{num_trials} trials' if num_trials > 1 else 'trial'}"
    reason += f"; left out, as it is gone: {_first(gone)}" if gone else ""
    cost, best_cost = fold_cost(trial.folder), fold_cost(best.folder)
    return Choice(
        select="ensemble", trial=trial, best=best, reason=reason, cost_s=cost, best_cost_s=best_cost, members=members
    )


def _members(study: optuna.Study, ranked: list[FrozenTrial], top_k: int) -> tuple[tuple[Member, ...], list[Path]]:
    """The members, and the folders of better folds that are gone."""
    _require_averaged(study.user_attrs[IDENTITY]["config"])
    split_id = ranked[0].user_attrs.get(SPLIT_ID)
    members, gone = list[Member](), list[Path]()
    for trial in (describe_trial(study, each) for each in ranked if each.user_attrs.get(SPLIT_ID) == split_id):
        folders = [trial.folder / f"fold_{fold}" for fold in range(len(trial.fold_scores))]
        members += [Member(trial=trial, fold=fold) for fold, folder in enumerate(folders) if folder.is_dir()]
        gone += [folder for folder in folders if not folder.is_dir()] if trial.folder.is_dir() else [trial.folder]
        if len(members) >= top_k:
            return tuple(members[:top_k]), gone
    missing = f" (gone: {_first(gone)}); take --select best, or" if gone else ";"
    raise HpoError(
        f"--top-k {top_k}: the completed trials of study '{study.study_name}' have {len(members)} folds on the data of"
        f" the best one{missing} ask for no more"
    )


def _first(folders: list[Path]) -> str:
    """The first of some folders, and how many more there are."""
    return str(folders[0]) + (f" and {len(folders) - 1} more" if folders[1:] else "")


def _require_averaged(fixed: dict[str, Any]) -> None:
    task, is_adapter = fixed.get("task"), fixed.get("lora.merge") is False
    if task in AVERAGED and not is_adapter:
        return
    what = "adapters without their base" if is_adapter else f"models of task {task}"
    raise HpoError(
        f"--select ensemble averages the probabilities of classifiers ({', '.join(AVERAGED)});"
        f" {what} cannot be averaged so: take --select best"
    )


def fold_cost(folder: Path) -> float | None:
    """Device-seconds that a fold of the trial in `folder` took on average; None when no record of one is left."""
    spent = []
    for fold in folder.glob("fold_*"):
        with contextlib.suppress(DataError):  # cut off by a full disk
            records = RunDir(fold).records()
            if any(record.event is Event.EVALUATE for record in records):
                spent.append(_device_s(records))
    return fmean(spent) if spent else None


def _device_s(records: list[Record]) -> float:
    """From each start to the last record before the next one: in between it may have lain parked for days."""
    seconds, start = 0.0, records[0]
    for record, following in zip(records, [*records[1:], None], strict=True):
        start = record if record.event is Event.START else start
        if following is None or following.event is Event.START:
            seconds += (record.time - start.time) * start.values.get("world_size", 1.0)
    return seconds
