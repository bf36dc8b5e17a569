#!/usr/bin/python3
"""Millions of inputs through the readers of the table, in one process whose memory is watched.

    python3 -m tests.fuzz.many --inputs 10000000 [--only NAME ...] [--seed N]

The coverage-guided run (`run`) looks for new ways through the product, some thousand inputs a second; this one takes
what it found (tests/fuzz/corpus, its seeds, build/fuzz) and changes bytes of it blindly. Readers take turns of half a
second each, so slow ones get fewer inputs. An exception that the table does not name, an input of more
than CPU_S seconds, or a process that goes on growing fails the run. Needs nothing but Debian's Python.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple

from tests.fuzz import seeds
from tests.fuzz.run import WORK
from tests.fuzz.table import CPU_S, TABLE, Harness

TURN_S = 0.5
WARM = 0.1  # of the inputs: by then every module is loaded and every bounded cache is full
GROWTH_MAX = 4 << 20  # bytes after that; ten million inputs that lost one byte each would be above
INTERESTING = bytes.fromhex(
    "0001171819 1a1b203738 393a3b4058 595a606178 797a8081 828384 989fa0a1a2b8 bfd2d8f4f5f6 f7f97fff"
)
LINE_S = 30.0  # seconds between two lines of progress


class Trouble(Exception):
    """The invariant does not hold."""


class Turns(NamedTuple):
    harness: Harness
    samples: list[bytes]


def changed(dice: random.Random, samples: list[bytes], size: int) -> bytes:
    """One of the samples with one to four changes, at most `size` bytes."""
    data = bytearray(dice.choice(samples))
    for _ in range(dice.choice((1, 1, 1, 2, 2, 3, 4))):
        dice.choice(_CHANGES)(dice, data, samples)
    return bytes(data[:size])


def _flip(dice: random.Random, data: bytearray, _samples: list[bytes]) -> None:
    if data:
        data[int(dice.random() * len(data))] ^= 1 << int(dice.random() * 8)


def _put(dice: random.Random, data: bytearray, _samples: list[bytes]) -> None:
    if data:
        data[int(dice.random() * len(data))] = INTERESTING[int(dice.random() * len(INTERESTING))]


def _any(dice: random.Random, data: bytearray, _samples: list[bytes]) -> None:
    if data:
        data[int(dice.random() * len(data))] = int(dice.random() * 256)


def _insert(dice: random.Random, data: bytearray, _samples: list[bytes]) -> None:
    at = int(dice.random() * (len(data) + 1))
    data[at:at] = dice.randbytes(dice.choice((1, 1, 2, 8)))


def _remove(dice: random.Random, data: bytearray, _samples: list[bytes]) -> None:
    at = int(dice.random() * (len(data) + 1))
    del data[at : at + dice.choice((1, 1, 2, 8, 64))]


def _again(dice: random.Random, data: bytearray, _samples: list[bytes]) -> None:
    """A piece of itself a second time."""
    at = int(dice.random() * (len(data) + 1))
    data[at:at] = data[at : at + dice.choice((1, 4, 32))]


def _splice(dice: random.Random, data: bytearray, samples: list[bytes]) -> None:
    """The rest of another sample."""
    other = dice.choice(samples)
    data[int(dice.random() * (len(data) + 1)) :] = other[int(dice.random() * (len(other) + 1)) :]


_CHANGES: tuple[Callable[[random.Random, bytearray, list[bytes]], None], ...] = (
    _flip, _put, _put, _any, _insert, _remove, _again, _splice,
)  # fmt: skip


def resident() -> int:
    """Bytes of this process that nobody shares and that are in memory."""
    with open("/proc/self/statm", "rb") as file:
        pages = file.read().split()
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")


def known(harness: Harness) -> list[bytes]:
    """What is interesting to this reader, as far as it is known here."""
    found = {b""}
    for directory in (harness.corpus, WORK / "seeds" / harness.name, WORK / harness.name):
        if directory.is_dir():
            found |= {path.read_bytes()[: harness.size] for path in directory.iterdir()}
    return sorted(found)


def one(harness: Harness, data: bytes) -> None:
    """Raises Trouble, with the input kept where `run` keeps its own."""
    began = time.thread_time()
    try:
        harness.try_one(data)
    except Exception as error:
        raise Trouble(f"{harness.name}: {type(error).__name__}: {error}; {_kept(harness, data)}") from error
    spent = time.thread_time() - began
    if spent > CPU_S:
        raise Trouble(f"{harness.name}: {spent:.1f} s of CPU for {len(data)} bytes; {_kept(harness, data)}")


def _kept(harness: Harness, data: bytes) -> str:
    path = WORK / f"crash-{harness.name}-{sha256(data).hexdigest()[:12]}"
    WORK.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return f"the input is {path}"


def many(harnesses: list[Harness], inputs: int, seed: int, say: Callable[[str], None]) -> dict[str, int]:
    """How many inputs each had. Raises Trouble."""
    dice = random.Random(seed)
    turns = [Turns(harness, known(harness)) for harness in harnesses]
    counts = dict.fromkeys((harness.name for harness in harnesses), 0)
    done, warm, base = 0, int(inputs * WARM), 0
    began = said = time.monotonic()
    while done < inputs:
        for harness, samples in turns:
            until = time.monotonic() + TURN_S
            taken = 0
            while time.monotonic() < until and done + taken < inputs:
                one(harness, changed(dice, samples, harness.size))
                taken += 1
            counts[harness.name] += taken
            done += taken
        if not base and done >= warm:
            base = resident()
        if time.monotonic() - said > LINE_S:
            said = time.monotonic()
            say(f"{done:,} inputs in {said - began:.0f} s, {resident() >> 10:,} KiB")
    grown = resident() - base
    say(f"{done:,} inputs in {time.monotonic() - began:.0f} s; {grown / 1024:+,.0f} KiB since {warm:,}")
    if grown > GROWTH_MAX:
        raise Trouble(f"the process grew by {grown} bytes")
    return counts


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all readers together")
    parser.add_argument("--only", nargs="*", default=[], help="these readers only")
    parser.add_argument("--seed", type=int, default=0, help="the same inputs each time for one reader; 0: others")
    given = parser.parse_args(arguments)
    wanted = [harness for harness in TABLE if not given.only or harness.name in given.only]
    seeds.write(WORK / "seeds")
    try:
        counts = many(wanted, given.inputs, given.seed or random.SystemRandom().getrandbits(32), _say)
    except Trouble as trouble:
        print(f"FAILED {trouble}")
        return 1
    for name, count in counts.items():
        print(f"ok     {name:12}{count:12,} inputs")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
