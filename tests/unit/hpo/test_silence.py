"""Clocks that are set while leases are held: nobody alive is taken for lost, and nobody dead for alive."""

from __future__ import annotations

from hpo.ledger import LEASE_S, Held, Holder, this_process
from hpo.silence import SILENCE_S, Silence

ELSEWHERE = Holder("another", 1, 0.0)
DEAD = Holder(this_process().host, this_process().pid, -1.0)
RENEWED_EVERY_S = 5.0


class World:
    """A holder elsewhere, a database, and us: the database's clock may be set, ours runs on."""

    def __init__(self) -> None:
        self.ours, self.database = 1000.0, 1e9
        self.expires = self.database + LEASE_S
        self.silence = Silence(lambda: self.ours)

    def wait(self, seconds: float) -> None:
        self.ours, self.database = self.ours + seconds, self.database + seconds

    def renew(self) -> None:
        self.expires = self.database + LEASE_S

    def looks_lost(self, holder: Holder = ELSEWHERE) -> bool:
        is_expired = self.expires <= self.database
        held = Held(trial_id=7, number=3, holder=holder, expires=self.expires, is_expired=is_expired)
        return self.silence.lost([held]) == [held]

    def until_lost(self) -> float:
        """Seconds of ours until it looks lost, when it is never renewed again."""
        began = self.ours
        while not self.looks_lost():
            self.wait(1.0)
        return self.ours - began


def test_what_is_known_to_be_dead_is_lost_at_once() -> None:
    assert World().looks_lost(DEAD)


def test_a_lease_that_ran_out_before_we_came_is_lost_once_it_was_watched() -> None:
    world = World()
    world.wait(10 * LEASE_S)
    assert not world.looks_lost() and world.silence.doubtful == [3]
    assert world.until_lost() == SILENCE_S and not world.silence.doubtful


def test_a_clock_that_jumps_forwards_makes_nobody_lost_who_lives() -> None:
    world = World()
    for jump in (0.0, 3600.0, 0.0, 600.0, 0.0):
        world.database += jump
        for _ in range(10):
            assert not world.looks_lost()
            world.wait(RENEWED_EVERY_S)
            assert not world.looks_lost()
            world.renew()
    assert not world.looks_lost() and not world.silence.doubtful


def test_what_others_have_taken_over_or_has_ended_is_no_longer_in_doubt() -> None:
    world = World()
    world.wait(10 * LEASE_S)
    assert not world.looks_lost() and world.silence.doubtful
    assert world.silence.lost([]) == [] and not world.silence.doubtful


def test_after_a_time_in_which_nobody_could_look_the_watch_begins_anew() -> None:
    world = World()
    assert not world.looks_lost()
    world.wait(2 * LEASE_S)
    assert not world.looks_lost() and world.silence.doubtful == [3]
    world.wait(RENEWED_EVERY_S)
    world.renew()
    assert not world.looks_lost() and not world.silence.doubtful


def test_a_clock_that_jumps_backwards_keeps_nobody_alive_who_is_gone() -> None:
    world = World()
    assert not world.looks_lost()
    world.database -= 3600.0
    assert world.until_lost() == LEASE_S + SILENCE_S


def test_who_renews_by_a_clock_far_behind_is_in_doubt_until_then_and_no_longer() -> None:
    """Two machines that share a SQLite file have a database's clock each."""
    world = World()
    world.expires -= 3600.0
    assert not world.looks_lost() and world.silence.doubtful == [3]
    for _ in range(10):
        world.wait(RENEWED_EVERY_S)
        world.renew()
        world.expires -= 3600.0
        assert not world.looks_lost() and not world.silence.doubtful
    assert world.until_lost() == SILENCE_S
