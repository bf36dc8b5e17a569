"""Every reader of bytes from outside against its corpus, hostile samples and mutations: a value or our error.

The coverage-guided search is `make fuzz`; this is what it has found so far, replayed in seconds, with bounds on memory
and CPU time for all of it.
"""

from __future__ import annotations

import contextlib
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeguard.errors import DecodeError
from tests.fuzz import seeds
from tests.fuzz.table import CORPUS, CPU_S, TABLE, Harness, samples

TOP = Path(__file__).resolve().parents[3]
CORPUS_MAX = 300 * 1024  # bytes of all corpora together
MUTATIONS = 8  # of each sample, always the same ones
MEMORY = 512 * 1024 * 1024  # bytes of address space beyond what the process has before the first input


def mutated(data: bytes, dice: random.Random) -> bytes:
    """A few bytes changed, taken out, doubled, or the end cut off."""
    found = bytearray(data)
    for _ in range(dice.randrange(1, 4)):
        at = dice.randrange(len(found) + 1)
        kind = dice.randrange(4)
        if kind == 0:
            found[at : at + 1] = bytes([dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))])
        elif kind == 1:
            del found[at : at + dice.randrange(1, 9)]
        elif kind == 2:
            found[at:at] = found[at : at + dice.randrange(1, 17)]
        else:
            del found[at:]
    return bytes(found)


def inputs(harness: Harness) -> list[bytes]:
    """The corpus, the seeds, and mutations of both."""
    known = [data for _name, data in samples(harness)] + list(seeds.SEEDS[harness.name]())
    dice = random.Random(harness.name)
    return known + [mutated(data, dice) for data in known for _ in range(MUTATIONS) if len(data) < 4096]


@pytest.mark.parametrize("harness", TABLE, ids=lambda harness: harness.name)
def test_any_bytes_are_a_value_or_our_error(harness: Harness) -> None:
    found = inputs(harness)
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        for data in found:
            began = time.thread_time()
            try:
                harness.try_one(data)
            except Exception as error:
                raise AssertionError(f"{harness.name}: {data[:200]!r} ({len(data)} bytes)") from error
            assert time.thread_time() - began < CPU_S, data[:200]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_every_harness_has_a_corpus_and_every_corpus_a_harness() -> None:
    assert sorted(path.name for path in CORPUS.iterdir()) == sorted(harness.name for harness in TABLE)
    assert all(any(samples(harness)) for harness in TABLE)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*")) < CORPUS_MAX


@pytest.mark.parametrize("harness", TABLE, ids=lambda harness: harness.name)
def test_a_harness_gets_past_the_door(harness: Harness) -> None:
    """At least one sample is a value: a harness that refuses everything tests a door and no room."""
    for data in inputs(harness):
        with contextlib.suppress(Exception):  # the test above is for errors that are not ours
            harness.run(data)
            return
    raise AssertionError("every sample is refused")


def test_a_bug_goes_through() -> None:
    def broken(_data: bytes) -> None:
        raise KeyError("not ours")

    def refusing(_data: bytes) -> None:
        raise DecodeError("ours")

    Harness("x", refusing).try_one(b"")
    with pytest.raises(KeyError):
        Harness("x", broken).try_one(b"")


def test_seeds_are_written(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "tests.fuzz.seeds", str(tmp_path)], cwd=TOP, check=True, capture_output=True)
    assert len(list(tmp_path.rglob("seed-*"))) == sum(sum(1 for _ in make()) for make in seeds.SEEDS.values())
