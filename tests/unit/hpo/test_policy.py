"""What is decided about each failure, and who waits how long."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from hpo import policy
from hpo.policy import Action, Delays, Policy, Tried, hopeless
from hpo.study_config import RecoveryConfig
from hpo.tally import MICRO_BATCH, NOT_BEFORE, RETRIES
from training.errors import Failure, FailureKind

NOW = 1000.0


def failed(kind: FailureKind | str, message: str = "no") -> Failure:
    return Failure(kind=FailureKind(kind), message=message)


def policy_of(**recovery: Any) -> Policy:
    return Policy(RecoveryConfig.model_validate(recovery), clock=lambda: NOW, chance=lambda: 0.0)


def test_every_kind_of_failure_has_a_policy() -> None:
    assert {kind: str(policy_of().action(kind)) for kind in FailureKind} == {
        "config": "fail",
        "data": "fail",
        "non_finite": "fail",
        "oom": "halve_batch",
        "user_code": "fail",
        "distributed_start": "fail",
        "infrastructure": "retry",
        "signal": "retry",
        "launch": "fail",
        "hang": "retry",
        "timeout": "fail",
        "preemption": "retry",
        "disk_full": "stop",
        "shm_full": "fail",
    }


@pytest.mark.parametrize(
    ("kind", "action", "says"),
    [
        ("user_code", "retry", "user_code cannot be retry: the same code fails again; write infeasible, fail or stop"),
        ("config", "retry", "config cannot be retry: the same configuration is wrong each time"),
        ("data", "halve_batch", "data cannot be halve_batch: the same data are read again"),
        ("hang", "halve_batch", "halve_batch is for oom; hang has nothing to do with the size of a batch"),
        ("oom", "half", "Input should be 'halve_batch'"),
    ],
)
def test_what_cannot_help_is_refused_with_the_reason(kind: str, action: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        RecoveryConfig.model_validate({"on_failure": {kind: action}})


def test_a_retry_is_counted_and_waits_twice_as_long_each_time() -> None:
    patient = policy_of(max_retries=20, backoff="3s")
    for retries, wait_s in ((0, 3.0), (1, 6.0), (2, 12.0), (9, 300.0)):
        verdict = patient.decide(failed("hang"), Tried(retries=retries))
        assert verdict.action is Action.RETRY
        assert verdict.attributes == {RETRIES: retries + 1, NOT_BEFORE: NOW + wait_s}
    assert verdict.reason == "queued again (10 of 20 retries)"


def test_chance_takes_up_to_half_of_the_wait() -> None:
    hasty = Policy(RecoveryConfig(backoff=8.0), clock=lambda: NOW, chance=lambda: 0.999)
    assert 4.0 < hasty.decide(failed("signal"), Tried()).attributes[NOT_BEFORE] - NOW < 4.1


def test_after_its_retries_a_trial_fails() -> None:
    verdict = policy_of(max_retries=2).decide(failed("signal"), Tried(retries=2))
    assert (verdict.action, verdict.reason) == (Action.FAIL, "after 2 of 2 retries")
    assert policy_of(max_retries=0).decide(failed("signal"), Tried()).action is Action.FAIL


def test_a_preemption_is_not_counted_and_nothing_waits_for_it() -> None:
    verdict = policy_of(max_retries=0).decide(failed("preemption"), Tried())
    assert (verdict.action, verdict.attributes) == (Action.RETRY, {})
    assert policy_of(on_failure={"preemption": "fail"}).decide(failed("preemption"), Tried()).action is Action.FAIL


def test_out_of_memory_halves_the_micro_batch_until_it_is_one_or_the_retries_are_used_up() -> None:
    halving = policy_of(max_retries=3)
    verdict = halving.decide(failed("oom"), Tried(micro_batch=15))
    assert (verdict.action, verdict.attributes[MICRO_BATCH]) == (Action.HALVE_BATCH, 7)
    assert verdict.reason == "queued again with micro-batches of 7 (1 of 3 retries)"
    for tried, says in (
        (Tried(retries=1, micro_batch=1), "it does not fit, with one sample at a time"),
        (Tried(retries=1), "it does not fit, and fewer samples at a time change the loss"),
        (Tried(retries=3, micro_batch=8), "after 3 of 3 retries"),
    ):
        verdict = halving.decide(failed("oom"), tried)
        assert (verdict.action, verdict.reason, verdict.attributes) == (Action.INFEASIBLE, says, {})


def test_what_the_study_says_is_done() -> None:
    chosen = policy_of(on_failure={"non_finite": "infeasible", "oom": "retry", "user_code": "stop"})
    assert chosen.decide(failed("non_finite"), Tried()).action is Action.INFEASIBLE
    assert chosen.decide(failed("oom"), Tried(micro_batch=8)).attributes.keys() == {RETRIES, NOT_BEFORE}
    assert chosen.decide(failed("oom"), Tried(retries=2)).action is Action.FAIL
    assert chosen.decide(failed("user_code"), Tried()).action is Action.STOP
    assert chosen.goes_on_after(failed("oom")) and not chosen.goes_on_after(failed("user_code"))


def test_trials_that_wait_go_on_in_turn_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(policy.time, "time", lambda: NOW + now[0])
    delays = Delays(lambda: now[0])
    for number, wait_s in ((3, 9.0), (4, 5.0), (5, -1.0), (6, 1e6)):
        delays.add(number, NOW + wait_s)
    assert (5 in delays, len(delays), delays.wait_s()) == (False, 3, 5.0)
    now[0] = 10.0
    assert delays.wait_s() == policy.LONGEST_BACKOFF_S - 10.0, "a clock that was set back keeps no trial for ever"
    delays.wake(1)
    assert (4 in delays, 3 in delays) == (False, True)
    delays.wake(-1)
    delays.wake(5)
    assert (3 in delays, 6 in delays) == (False, True)
    delays.forget(6)
    assert (len(delays), delays.wait_s()) == (0, float("inf"))


def test_a_sweep_is_hopeless_when_its_first_trials_fail_alike_and_not_by_chance() -> None:
    alike = [failed("user_code", f"no {number}") for number in range(4)]
    assert hopeless(alike) == alike[2]
    assert hopeless(alike[:2]) is None
    assert hopeless([None, *alike]) is None
    assert hopeless([failed("oom")] * 3) is None
