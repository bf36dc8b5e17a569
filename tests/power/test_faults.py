"""A disk that fails at any call, and a kill at any call: it is said, nothing is lost, and it goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.power.conftest import MOMENTS
from tests.power.errands import TRIES, Errands, check
from tests.power.faults import ENDLESS, Fault, injected

pytestmark = pytest.mark.power

ENDED, STUCK, BUG = 0, 3, 4
LONG = pytest.mark.skipif(MOMENTS <= 300, reason="with EDGEGUARD_POWER_MOMENTS above 300")


def in_child(base: Path, fault: Fault, done: set[str]) -> tuple[int, list[tuple[str, Any]]]:
    """Do the errands in a child under a fault: how it ended, and what it said on the way."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        code = BUG
        try:
            os.close(out)
            code = _errands(base, fault, done, into)
        except BaseException:  # noqa: BLE001 - whatever it is, the parent is told
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(into)
    with open(out, "rb") as file:
        told = [tuple(json.loads(line)) for line in file.read().splitlines()]
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told


def _errands(base: Path, fault: Fault, done: set[str], into: int) -> int:
    write: Callable[[int, bytes], int] = os.write

    def say(what: str, value: Any) -> None:
        write(into, json.dumps([what, value]).encode() + b"\n")

    errands = Errands(str(base), say, done)
    with injected(fault):
        failed = errands.run()
    shutil.copytree(base, base.with_name("copy"))  # as a power cut would find it now
    say("copied", fault.calls)
    with injected(fault):
        fault.mend()
        for _ in range(TRIES):
            failed = failed and errands.run()
    say("calls", fault.calls)
    say("failed", fault.failed)
    return STUCK if failed else ENDED


def values(told: list[tuple[str, Any]], what: str) -> list[Any]:
    return [value for word, value in told if word == what]


@pytest.fixture
def place(own_place: Path) -> Path:
    return own_place / "errands"


def fresh(place: Path) -> Path:
    for old in (place, place.with_name("copy")):
        shutil.rmtree(old, ignore_errors=True)
    place.mkdir()
    return place


@pytest.mark.parametrize(
    ("number", "times"),
    [(errno.EIO, 1), (errno.ENOSPC, ENDLESS), pytest.param(errno.EIO, ENDLESS, marks=LONG)],
    ids=["EIO once", "ENOSPC until mended", "EIO until mended"],
)
def test_the_disk_fails_at_every_call(place: Path, number: int, times: int) -> None:
    for first in range(1, 2000):
        base = fresh(place)
        code, told = in_child(base, Fault(first, number, times=times), set())
        assert code == ENDED, (first, code, [line for line in told if line[0] == "said"][-5:])
        if not values(told, "failed")[0]:
            assert first > 250, "the errands write less than they did"
            return
        until = told[: [word for word, _ in told].index("copied")]
        wrong = [*check(str(base.with_name("copy")), until), *check(str(base), told)]
        assert not wrong, (first, values(told, "said"), wrong)
        assert values(told, "said"), f"call {first} failed, and nobody heard of it"
    pytest.fail("never ended without a fault")


@pytest.mark.parametrize("after", [False, pytest.param(True, marks=LONG)], ids=["before", "after"])
def test_a_kill_at_every_call(place: Path, after: bool) -> None:
    """And the next life ends what the first began, with the same promises."""
    for first in range(1, 2000):
        base = fresh(place)
        code, told = in_child(base, Fault(first, after=after), set())
        if code == ENDED:
            assert first > 250, "the errands write less than they did"
            return
        assert code == -9, (first, code)
        code, more = in_child(base, Fault(ENDLESS), set(values(told, "done")))
        assert code == ENDED, (first, code, more[-5:])
        wrong = list(check(str(base), [*told, *more]))
        assert not wrong, (first, wrong)
    pytest.fail("never ended without a kill")


def test_the_fault_reaches_every_way_to_write(place: Path) -> None:
    """Through the os module and through a file object."""
    base = fresh(place)
    fault = Fault(ENDLESS)
    with injected(fault):
        _write(base / "a")
        os.rename(base / "a", base / "b")
    assert fault.calls == 3
    assert (base / "b").read_bytes() == b"content"
    with injected(Fault(2, errno.EIO)), pytest.raises(OSError, match="Input/output"):
        _write(base / "c")


def _write(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    with open(fd, "wb") as file:
        file.write(b"content")
