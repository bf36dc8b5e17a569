"""After a run, and after one that was interrupted, nothing of a device is left on the machine that carried it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.device.lab import mounted

pytestmark = pytest.mark.device

TOP = Path(__file__).resolve().parents[2]
GONE_S = 60.0
# A run of its own: it boots a device with a cable and everything, says what it is called, and waits to be interrupted.
RUN = """
import signal, sys
from pathlib import Path
from tests.device.lab import Device
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started us in the background may have it ignored
with Device(Path(sys.argv[1]), net="veth") as device:
    device.begin("exec sleep 1000")
    print(device.name, device.folder, device.link, flush=True)
    if sys.argv[2] == "wait":
        sys.stdin.read()  # also the end of this test is an interruption
"""


def traces(name: str, folder: str, link: str) -> list[str]:
    """Everything on this machine that reminds of the device."""
    found = [
        f"process {path.name}"
        for path in Path("/proc").glob("[0-9]*")
        if name.encode() in _bytes(path / "cmdline") and b"leftovers" not in _bytes(path / "cmdline")
    ]
    found += [
        f"mount {line.split()[4]}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line
    ]
    loops = json.loads(_output("losetup", "--list", "--json") or '{"loopdevices": []}')["loopdevices"]
    found += [f"loop {loop['name']}" for loop in loops if folder in (loop["back-file"] or "")]
    found += [f"namespace {path}" for path in Path("/run/netns").glob(f"*{name}*")]
    found += [f"interface {link}"] if Path(f"/sys/class/net/{link}").exists() else []
    for top in (mounted("cgroup2"), mounted("cgroup", "name=systemd")):
        found += [f"cgroup {top}/{name}"] if top and Path(top, name).exists() else []
    return found + ([f"folder {folder}"] if Path(folder).exists() else [])


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _output(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def started(image: Path, how: str) -> tuple[subprocess.Popen[str], tuple[str, str, str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(image), how],
        cwd=TOP,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    name, folder, link = process.stdout.readline().split()
    return process, (name, folder, link)


def test_an_orderly_run_leaves_nothing(image: Path) -> None:
    process, what = started(image, "go")
    assert process.wait(60) == 0
    assert traces(*what) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_an_interrupted_run_leaves_nothing(image: Path, number: signal.Signals) -> None:
    process, what = started(image, "wait")
    assert {line.partition(" ")[0] for line in traces(*what)} == {
        *("process", "mount", "loop", "namespace", "interface", "cgroup", "folder")
    }
    process.send_signal(number)
    process.wait(60)
    deadline = time.monotonic() + GONE_S
    while (left := traces(*what)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
