"""Random lives of a spool: whatever is killed, full, broken or flipped, no promise is broken.

EDGEGUARD_SPOOL_LIVES=10000 is the long run (docs/records.md); EDGEGUARD_SPOOL_SEED takes another set.
"""

import os
import random

import pytest
from spool_model import Life

LIVES = int(os.environ.get("EDGEGUARD_SPOOL_LIVES", "200"))
SEED = int(os.environ.get("EDGEGUARD_SPOOL_SEED", "1"))
PARTS = 4  # so that a failure is seen before the end


@pytest.fixture
def place(tmp_path):
    """Memory where there is some: half a million syncs are no test of the disk."""
    shared = f"/dev/shm/edgeguard-model-{os.getpid()}"
    where = shared if os.access("/dev/shm", os.W_OK) else str(tmp_path)
    yield f"{where}/life"
    import shutil

    shutil.rmtree(shared, ignore_errors=True)


@pytest.mark.parametrize("part", range(PARTS))
def test_no_life_breaks_a_promise(place, part):
    for number in range(part, LIVES, PARTS):
        life = Life(place, random.Random(SEED * 1_000_000 + number), flips=number % 3 == 0)
        life.run()
        wrong = life.check()
        assert not wrong, f"life {number} of seed {SEED}: {wrong[:5]}; it was: {life.log}"
