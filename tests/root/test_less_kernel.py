"""Rungs that a namespace takes away: what a device of tests/device cannot show (see its test_less_kernel.py)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces"),
    pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare (util-linux)"),
]

TOP = Path(__file__).resolve().parents[2]
FILES = """
from edgeguard.model import Watch
from edgeguard.sensors import Context
from edgeguard.sensors.files import Files
sensor = Files(Context({root!r}), [Watch("/etc", "config")], None, {root!r}, rungs=("inotify", "sweep"))
rung = sensor.start()
print(json.dumps([rung, sensor.rung]))
"""
PROCESSES = """
import time
from edgeguard.sensors import Context
from edgeguard.sensors.processes import Processes
began = time.monotonic()
rung = Processes(Context(), hints=True).start()
print(json.dumps([rung, time.monotonic() - began]))
"""


def inside(words: list[str], setup: str, code: str) -> Any:
    """What `code` prints as JSON, run in new namespaces after `setup`."""
    script = f'{setup}\nexec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", *words, "--", "/bin/sh", "-ec", script, sys.executable, f"import json\n{code}"],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def tree(tmp_path: Path) -> str:
    for number in range(8):
        (tmp_path / f"etc/d{number}").mkdir(parents=True)
    return str(tmp_path)


def test_inotify_watches_that_run_out_are_said(tree: str) -> None:
    """The limit is of a user namespace. The directories beyond it are silent, so the rung has to name them."""
    setup = "echo 4 >/proc/sys/user/max_inotify_watches"
    rung, _ = inside(["--user", "--map-root-user"], setup, FILES.format(root=tree))
    name, proven, blind, tried = rung
    assert (name, proven, tried) == ("inotify", True, [])
    wanted = (
        "watched directories beyond the first 4 are only looked at by sweeps (the kernel gives no more inotify watches)"
    )
    assert wanted in blind


@pytest.mark.parametrize(
    ("limit", "reason"),
    [("max_inotify_instances", "inotify: Too many open files"), ("max_inotify_watches", "No space left on device")],
)
def test_without_inotify_sweeps_are_left(tree: str, limit: str, reason: str) -> None:
    setup = f"echo 0 >/proc/sys/user/{limit}"
    (name, proven, blind, tried), same = inside(["--user", "--map-root-user"], setup, FILES.format(root=tree))
    assert [name, proven, blind, tried] == same
    assert (name, proven) == ("sweep", True)
    assert tried[0][0] == "inotify"
    assert reason in tried[0][1]
    assert blind == ["changes of files are not seen as they happen, only by sweeps"]


def test_a_kernel_that_never_answers_the_subscription(tree: str) -> None:
    """From another pid namespace the kernel drops the subscription without a word, as one does that was built without
    process events: the sensor must not wait for it long."""
    del tree
    (name, _proven, blind, tried), took = inside(["--pid", "--fork", "--mount-proc"], ":", PROCESSES)
    # Answers to other subscribers of this machine come by, too; then its own program is what it does not hear of.
    assert re.search("does not answer|our own exec was not reported", dict(tried)["proc connector"])
    assert name == "fanotify exec"
    assert blind
    assert took < 5


def test_processes_that_proc_hides_are_said(tree: str) -> None:
    """hidepid: the programs of others are not even counted."""
    del tree
    nobody = "import os\nos.setresgid(65534, 65534, 65534)\nos.setresuid(65534, 65534, 65534)"
    setup = "mount -t proc -o hidepid=invisible proc /proc"
    (_name, _proven, blind, _tried), _took = inside(["--mount"], setup, nobody + PROCESSES)
    assert any(line.startswith("Processes of other users are not seen") for line in blind)
