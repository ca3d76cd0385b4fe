"""What a study has spent, what stopping trials has saved it, and how often it stopped one that would have won."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.criteria import as_tuple, signs
from hpo.pruning import axis_of
from hpo.reporting.summary import num_evaluated
from hpo.step_axis import StepAxis
from hpo.study import is_feasible, trial_folder
from hpo.tally import AUDIT, CONTINUES, DEVICE_SECONDS, FOLD_SCORES, SAMPLED
from training.run_dir import RunDir

EPOCHS = "training.epochs"


@dataclass(frozen=True, kw_only=True, slots=True)
class FalseStops:
    """Of the trials that a rule would have stopped and that ran on for the audit, those it was wrong about."""

    num_audited: int
    num_false: int
    rate: float
    low: float
    high: float
    """Wilson's 95 % interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """One fold-epoch is one epoch of one fold."""

    fold_epochs: int
    """Trained and scored by all trials, failed and interrupted ones too; what was trained twice counts once."""
    saved_fold_epochs: int
    """What the stopped trials would have trained beyond that."""
    num_stopped: int
    device_seconds: float | None
    """Of the trials that say; None when none does."""
    saved_device_seconds: float | None
    """About: the saved fold-epochs at the mean cost of those that were trained."""
    false_stops: FalseStops | None
    """None when there was none for the audit: not measured."""

    @property
    def saved_share(self) -> float:
        """Of what the same trials would have cost without stopping."""
        total = self.fold_epochs + self.saved_fold_epochs
        return self.saved_fold_epochs / total if total else 0.0


def cost_of(study: optuna.Study) -> Cost:
    """Add it up over all trials."""
    trials, axis = study.get_trials(deepcopy=False), axis_of(study)
    chains = defaultdict[int, list[FrozenTrial]](list)
    for trial in trials:
        chains[trial.user_attrs.get(CONTINUES, trial.number)].append(trial)
    pruned = [root for root, chain in chains.items() if chain[-1].state is TrialState.PRUNED]
    spent = {root: _fold_epochs(chain, study, axis) for root, chain in chains.items()}
    stopped = [root for root in pruned if spent[root]]  # others were refused for what they would take
    saved = sum(axis.num_folds * _epochs(chains[root][-1], axis) - spent[root] for root in stopped)
    seconds = {root: [each.user_attrs.get(DEVICE_SECONDS) for each in chain] for root, chain in chains.items()}
    timed = {root: math.fsum(filter(None, parts)) for root, parts in seconds.items() if any(parts)}
    timed_epochs = sum(spent[root] for root in timed)
    total = math.fsum(timed.values())
    return Cost(
        fold_epochs=sum(spent.values()),
        saved_fold_epochs=saved,
        num_stopped=len(stopped),
        device_seconds=total if timed else None,
        saved_device_seconds=total / timed_epochs * saved if timed_epochs else None,
        false_stops=false_stops(study),
    )


def false_stops(study: optuna.Study) -> FalseStops | None:
    """How often a rule was wrong about the audited trials: run to their end, they violate no constraint, and beat the
    best one of that time; with several objectives, in at least one, that which was to dominate them."""
    toward_better = signs(direction.name.lower() for direction in study.directions)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    audited = [trial for trial in complete if AUDIT in trial.user_attrs]
    if not audited:
        return None
    num_false = 0
    for trial in filter(is_feasible, audited):
        compared = zip(toward_better, trial.values, as_tuple(trial.user_attrs[AUDIT]["to_beat"]), strict=True)
        num_false += any(sign * (value - other) > 0 for sign, value, other in compared)
    low, high = wilson(num_false, len(audited))
    return FalseStops(num_audited=len(audited), num_false=num_false, rate=num_false / len(audited), low=low, high=high)


def wilson(count: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (1927): it stays within 0 and 1, also for none of a few."""
    z, share = 1.959963984540054, count / total
    center = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return max(0.0, center - half), min(1.0, center + half)


def _fold_epochs(chain: Sequence[FrozenTrial], study: optuna.Study, axis: StepAxis) -> int:
    """What trials that went on with each other have trained together."""
    if study.directions[1:]:  # Optuna keeps no values in between
        return _fold_epochs_on_disk(chain, study, axis)
    return len({step for trial in chain for step in trial.intermediate_values if step != axis.verdict})


def _fold_epochs_on_disk(chain: Sequence[FrozenTrial], study: optuna.Study, axis: StepAxis) -> int:
    """All of the folds that have ended, and of others what their run directories say, which the trials share."""
    scores = chain[-1].user_attrs.get(FOLD_SCORES, [])
    ended = {fold for fold, score in enumerate(scores) if score is not None}
    begun, epochs = set(range(axis.num_folds)) - ended, _epochs(chain[-1], axis)
    run_dirs = [[RunDir(trial_folder(study, each) / f"fold_{fold}") for each in chain] for fold in begun]
    trained = sum(min(epochs, max(map(num_evaluated, of_fold))) for of_fold in run_dirs)
    return len(ended) * epochs + trained


def _epochs(trial: FrozenTrial, axis: StepAxis) -> int:
    """Of each fold of a trial that is not stopped."""
    return int(trial.user_attrs.get(SAMPLED, trial.params).get(EPOCHS, axis.base_epochs or axis.max_epochs))
