"""The cache of test devices: whole or not there, made once however many ask, never in the way of the next maker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.device import cache

MAKER = """import sys, time
from pathlib import Path
from tests.device.cache import made
def make(part):
    part.mkdir()
    with open(sys.argv[1], "a") as log:
        log.write("made\\n")
    time.sleep(float(sys.argv[2]))
    (part / "file").write_text("whole")
print((made("image-arm64-x-0", make) / "file").read_text())
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEGUARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def maker(top: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", MAKER, str(log), str(seconds)]
    return subprocess.Popen(words, cwd=top, stdout=subprocess.PIPE, text=True)


def write(part: Path) -> None:
    part.write_text("x")


def wait_for(log: Path) -> None:
    deadline = time.monotonic() + 60
    while not log.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_made_once_however_many_ask(place: Path, top: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    makers = [maker(top, log, 0.3) for _ in range(3)]
    assert [one.communicate(timeout=60)[0] for one in makers] == ["whole\n"] * 3
    assert log.read_text() == "made\n"


def test_a_killed_maker_leaves_nothing_that_counts(place: Path, top: Path, tmp_path: Path) -> None:
    first = maker(top, tmp_path / "first", 600)
    wait_for(tmp_path / "first")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (place / "image-arm64-x-0").exists()
    assert maker(top, tmp_path / "second", 0).communicate(timeout=60)[0] == "whole\n"
    assert [path.name for path in place.iterdir() if not path.name.endswith(".lock")] == ["image-arm64-x-0"]


def test_a_failed_maker_leaves_nothing(place: Path) -> None:
    def fail(part: Path) -> None:
        part.write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cache.made("root-x-0", fail)
    assert not any(path.name.startswith((".part", "root")) for path in place.iterdir())


def test_what_nobody_asked_for_goes_when_its_kind_is_made_again(place: Path) -> None:
    for name in ("image-arm64-x-0", "image-arm64-x-1", "image-arm64-y-0"):
        cache.made(name, write)
        os.utime(place / name, (0, 0))
    cache.made("image-arm64-x-1", pytest.fail)  # asked for: it stays
    cache.made("image-arm64-x-2", write)
    left = sorted(path.name for path in place.glob("image*"))
    assert left == ["image-arm64-x-1", "image-arm64-x-2", "image-arm64-y-0"]
