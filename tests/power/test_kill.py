"""kill -9 of the running daemon, its helpers and its sealer at any moment: the next start works, and all that was
answered is there. The page cache survives a kill, so this is about order, not about flushing.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeguard.errors import EdgeGuardError
from tests.power.busy import COLLECTOR_KEY, Facts, Life
from tests.power.conftest import MOMENTS, SEED
from tests.power.guarded import Guarded
from tests.power.judge import judge, values

pytestmark = pytest.mark.power

KILLS = MOMENTS  # the moments between any two calls are in test_faults
STARTING = 3  # of so many kills one hits a start: few answers are given then, and every file is opened
SENDING = 8  # after so many kills the uplink runs, so that receipts and deletions are hit, too


@pytest.fixture
def life(own_place: Path, world: Path) -> Iterator[Life]:
    """A daemon whose state lies on the ext4 of the test, and a clock that counts what was noted."""
    dice = random.Random(SEED)
    guarded = Guarded(world / "killed", world / "killed-disk")
    guarded.disk.mkdir()
    guarded.make(COLLECTOR_KEY)
    ticks = iter(range(1 << 30))
    life = Life(guarded, Facts(lambda: next(ticks)), world / "killed", dice)
    try:
        yield life
    finally:
        guarded.stop(signal.SIGKILL)
        life.receiver.end()


def test_killed_at_any_moment_it_goes_on(life: Life, own_place: Path) -> None:
    """What a request was about when the daemon died is open; what was answered before is not."""
    guarded, facts = life.guarded, life.facts
    life.begin()
    for kill in range(KILLS):
        if kill % STARTING:
            _in_the_midst_of_life(life)
        else:
            guarded.stop(signal.SIGKILL)
            with guarded.launched():
                time.sleep(life.dice.uniform(0.0, 1.0))  # until the moment of this kill
        guarded.stop(signal.SIGKILL)
        copy = own_place / "killed-copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(guarded.disk, copy)
        wrong = judge(guarded.on(copy), facts, 1 << 30)
        assert not wrong, (kill, wrong)
        guarded.start()
        guarded.until(guarded.settled)
        status = guarded.status()
        assert status["policy"]["revision"] >= max(values(facts.noted, "revision"))
        assert status["areas"]["log"]["sequence"] > max(values(facts.noted, "sequence"))
        life.look()
        if kill % SENDING == 0:
            life.receiver.send()


def _in_the_midst_of_life(life: Life) -> None:
    """Changes, acceptances and new policies, until the daemon is shot."""
    shot = threading.Timer(life.dice.uniform(0.0, 0.8), life.guarded.shoot, (life.dice.choice((0.0, 0.03)),))
    shot.start()
    with contextlib.suppress(EdgeGuardError):
        while True:
            life.dice.choice((life.change, life.accept, life.accept_for, life.reload))()
            life.look()
    shot.join()
