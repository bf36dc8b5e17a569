""".ci/run with a stand-in for every tool: order, lanes, what failed or was skipped, and nothing left running."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[3]


class Place:
    """A folder with .ci/run and stand-ins for all that it calls; each stand-in notes when it began and ended."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.log = base / "calls"
        for name in (".ci", "packaging/tools", "build/venv-newest/bin", "tests/device", "bin"):
            (base / name).mkdir(parents=True)
        shutil.copy(TOP / ".ci/run", base / ".ci/run")
        shutil.copy(TOP / "README.md", base)
        for name in ("roots", "prepare"):
            (base / f"tests/device/{name}.py").write_text("print('made')\n")
        self.stand_in("bin/make", 'case "$*" in ${FAIL:-nothing}) echo "it broke"; exit 2;; esac; sleep ${NAP:-0}')
        self.stand_in("bin/id", "echo ${ID:-0}")
        self.stand_in("bin/sudo", "exit 1")
        for name in ("packaging/tools/bootstrap.sh", ".ci/reproducible", "build/venv-newest/bin/python"):
            self.stand_in(name, ":")

    def stand_in(self, name: str, body: str) -> None:
        path = self.base / name
        note = f'echo "{path.name} $*" >>{self.log}'
        path.write_text(f'#!/bin/sh\n{note}\n{body}\necho "{path.name} $* ended" >>{self.log}\n')
        path.chmod(0o755)

    def environment(self, **more: str) -> dict[str, str]:
        return {"PATH": f"{self.base}/bin:/usr/bin:/bin", **more}

    def run(self, **more: str) -> tuple[int, str, list[str]]:
        done = subprocess.run(
            ["/bin/bash", ".ci/run"],
            cwd=self.base,
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout, self.log.read_text().splitlines()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "tree")


def summary(said: str) -> dict[str, str]:
    """Step -> verdict, from the last lines."""
    rows = said.rpartition("\n\n")[2].splitlines()
    found = (re.fullmatch(r"(ok|FAILED|skipped) +(.+?)  .*", row) for row in rows)
    return {match[2]: match[1] for match in found if match}


def test_all_steps_run_and_are_told(place: Place) -> None:
    code, said, calls = place.run()
    verdicts = summary(said)
    assert code == 0, said
    assert "FAILED" not in verdicts.values(), said
    for name in ("tools", "unit tests", "lint", "checks", "packages on trixie", "root tests", "figures"):
        assert verdicts[name] == "ok"
    calls = [call for call in calls if not call.startswith("id ")]
    tools = "run test services interop root deb lint newest device packages power emulated-arm64"
    assert calls[0] == f"bootstrap.sh {tools}"
    assert calls[-1] == "make bench ended"
    assert re.search(r"^\d+ passed, 0 failed, \d+ skipped$", said, re.MULTILINE)
    begun = [call for call in calls if call.startswith("make ")]
    arm = "make test-device ARCH=arm64 SUITE=bookworm ONLY=installed or rung or noticed or stick ended"
    assert arm in begun[: begun.index("make bench")]
    assert "make fuzz SECONDS=60 SEED=1 JOBS=4 ended" in begun[: begun.index("make bench")]
    quiet = {
        "make test-device SUITE=bookworm",
        "make test-device SUITE=trixie",
        "make test-power",
        "make test-fresh ONLY=run",
        "make bench",
    }
    first_quiet = min(begun.index(name) for name in quiet if name in begun)
    assert "make test-root ended" in begun[:first_quiet], "devices and figures do not run beside pure work"
    assert "make test-interop ended" in begun[:first_quiet]


def test_a_failure_is_told_and_stops_nothing(place: Place) -> None:
    code, said, _calls = place.run(FAIL="lint")
    verdicts = summary(said)
    assert code == 1
    assert verdicts["lint"] == "FAILED"
    assert verdicts["figures"] == "ok"
    assert "it broke" in said
    assert "1 failed" in said


def test_without_root_it_says_what_it_skips(place: Place) -> None:
    code, said, calls = place.run(ID="1000")
    verdicts = summary(said)
    assert code == 0, said
    assert {
        verdicts[name]
        for name in (
            *("tools", "root tests", "packages on clean roots", "device tests trixie"),
            *("power cuts and faults", "first commands on fresh machines", "ARM device"),
        )
    } == {"skipped"}
    assert "needs root" in said
    assert not any("test-device" in call or "test-root" in call for call in calls)


def test_tests_that_skip_are_listed(place: Place) -> None:
    place.stand_in("bin/make", "echo 'SKIPPED [1] tests/x.py:1: no such thing here'")
    _code, said, _calls = place.run()
    assert "        SKIPPED [1] tests/x.py:1: no such thing here" in said


@pytest.mark.parametrize("everywhere", [False, True], ids=["itself", "with its lanes"])
def test_nothing_is_left_when_it_is_ended(place: Place, everywhere: bool) -> None:
    place.stand_in("bin/make", "sleep 300")
    runner = subprocess.Popen(
        ["/bin/bash", ".ci/run"], cwd=place.base, env=place.environment(), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (place.log.exists() and "make" in place.log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    lanes = Path(f"/proc/{runner.pid}/task/{runner.pid}/children").read_text().split()
    for pid in (*map(int, lanes if everywhere else ()), runner.pid):
        os.kill(pid, signal.SIGTERM)
    runner.wait(60)
    while (left := below(place.base)) and time.monotonic() < deadline + 60:
        time.sleep(0.05)
    assert left == []


def below(tree: Path) -> list[str]:
    """Command lines of processes that work in this tree."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{entry}/cwd").startswith(str(tree)):
                found.append(Path(f"/proc/{entry}/cmdline").read_bytes().decode("utf-8", "replace"))
        except OSError:
            continue
    return found
