"""`make run`, as a newcomer has it: learns, follows, shows what is provoked, and leaves nothing behind.

The runner works on a copy of the tree, because it writes below build/run of its own.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[3]
LEARN_S = 200.0  # /etc, /usr/bin and /usr/sbin of a busy machine
NOTICE_S = 30.0


def below(tree: Path) -> list[str]:
    """Command lines of processes that run out of this tree."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                line = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:
                continue
            if os.fsencode(str(tree)) in line:
                found.append(line.decode("utf-8", "replace"))
    return found


def read_until(runner: subprocess.Popen[bytes], words: bytes, seconds: float) -> bytes:
    """What it prints up to these words."""
    assert runner.stdout is not None
    said, deadline = b"", time.monotonic() + seconds
    talk = select.poll()
    talk.register(runner.stdout, select.POLLIN)
    while words not in said:
        left = deadline - time.monotonic()
        ready = talk.poll(max(0.0, left) * 1000)
        chunk = os.read(runner.stdout.fileno(), 65536) if ready else b""
        if not chunk:
            raise AssertionError(f"{words!r} was not said:\n{said.decode('utf-8', 'replace')[-3000:]}")
        said += chunk
    return said


def test_learns_follows_and_ends(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="the collector serves with python3-aiohttp")
    tree = tmp_path / "tree"
    for name in ("edgeguard", "packaging"):
        shutil.copytree(TOP / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(TOP / "pyproject.toml", tree)
    runner = subprocess.Popen(
        ["/usr/bin/python3", "-u", str(tree / "packaging/tools/run.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )
    try:
        said = read_until(runner, b"Ctrl-C ends", LEARN_S)
        assert b"edgeguard" in said, "it says what to type in a second terminal"
        with open(tree / "build/run/demo/hello", "ab") as file:
            file.write(b"changed\n")
        read_until(runner, b"build/run/demo/hello", NOTICE_S)
    finally:
        runner.send_signal(signal.SIGINT)
        runner.communicate(timeout=60)
    assert below(tree) == [], "everything that it started has ended"
