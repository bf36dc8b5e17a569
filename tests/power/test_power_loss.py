"""The power goes at any moment of a busy life, and writes that were never flushed are gone: nothing torn is believed,
nothing is lost that was answered, and the daemon starts.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.power.conftest import MOMENTS, SEED, Lived
from tests.power.disk import Disk, Moments, mounted
from tests.power.judge import judge, values

pytestmark = pytest.mark.power

BOOT_EVERY = 15  # moments: the others are opened by code, which is twenty times as quick
TEETH = 60  # moments


@contextlib.contextmanager
def moments_of(living: Disk, folder: Path, seed: int) -> Iterator[Moments]:
    moments = Moments(living, folder, random.Random(seed))
    try:
        yield moments
    finally:
        moments.close()


def test_the_life_was_busy(lived: Lived) -> None:
    """A proof over a run in which little happened would prove little."""
    noted = {what: len(values(lived.facts.noted, what)) for what in ("sequence", "revision", "accepted", "sent", "act")}
    assert all(count >= 8 for count in noted.values()), noted
    assert values(lived.facts.noted, "retracted")
    assert len(lived.facts.records) > 150
    assert lived.disk.entries() > MOMENTS


def test_no_moment_leaves_a_torn_state_or_loses_what_was_answered(lived: Lived, own_place: Path) -> None:
    wrong = []
    with moments_of(lived.disk, own_place, SEED) as moments:
        chosen = moments.choose(MOMENTS, 1)
        for moment in chosen:
            fate = moments.cut(moment)
            with mounted(moments.image, lived.disk.mount):
                wrong += [f"moment {moment} ({fate}): {words}" for words in judge(lived.guarded, lived.facts, moment)]
    assert not wrong, f"{len(wrong)} in {len(chosen)} moments, the first: " + "\n".join(wrong[:10])


def test_the_daemon_starts_after_any_moment(lived: Lived, own_place: Path) -> None:
    """READY, a verdict, the revision that was in force, and no problem with its own state. Then the same judgement."""
    guarded, facts = lived.guarded, lived.facts
    with moments_of(lived.disk, own_place, SEED + 1) as moments:
        for moment in moments.choose(max(1, MOMENTS // BOOT_EVERY), 1):
            fate = moments.cut(moment)
            revision = max(values(facts.until(moment), "revision"), default=0)
            with mounted(moments.image, lived.disk.mount):
                try:
                    guarded.start()
                    guarded.until(guarded.settled)
                    status = guarded.status()
                finally:
                    guarded.stop(9)
                assert status["verdict"] in ("OK", "WARN", "CRIT"), (moment, fate, status)
                assert status["policy"]["revision"] >= revision, (moment, fate)
                assert not [words for words in status["problems"] if words.startswith(("spool", "baseline", "seal"))]
                known = facts.until(moment)
                lost = max(values(known, "sequence"), default=0)
                assert status["areas"]["log"]["sequence"] > lost, (moment, fate)


def test_the_proof_has_teeth(own_place: Path) -> None:
    """A writer that answers without a sync is caught; one that syncs, on the same disk, is not."""
    answered: list[tuple[int, str, str]] = []
    with Disk(own_place / "teeth") as living:
        for number in range(60):
            for kind in ("synced", "hasty"):
                name = f"{kind}-{number}"
                _write(living.mount, name, b"%08d" % number * 200, sync=kind == "synced" and number % 4 == 0)
                if kind == "hasty" or number % 4 == 0:
                    answered.append((living.entries(), kind, name))
        living.unmount()
        lost = {"synced": 0, "hasty": 0}
        with moments_of(living, own_place, SEED) as moments:
            for moment in moments.choose(TEETH, 1):
                moments.cut(moment)
                with mounted(moments.image, living.mount) as where:
                    for at, kind, name in answered:
                        whole = (where / name).exists() and (where / name).stat().st_size == 1600
                        lost[kind] += at <= moment and not whole
    assert lost["synced"] == 0
    assert lost["hasty"] > TEETH / 4


def _write(folder: Path, name: str, content: bytes, *, sync: bool) -> None:
    with open(folder / f"{name}.new", "wb") as file:
        file.write(content)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    os.rename(folder / f"{name}.new", folder / name)
    if sync:
        fd = os.open(folder, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
