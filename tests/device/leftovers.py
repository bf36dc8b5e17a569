"""Nothing of a test device outlives the tests, whatever ends them: also a kill that leaves no time for a last word.

A small process of its own holds the list of what there is to take away. It learns by the end of a pipe that the tests
are gone, takes away what is still on its list, and ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

KILL_S = 15.0  # until killed processes have left their cgroup


class Remains(NamedTuple):
    """What one device leaves on the machine that carries it."""

    name: str  # of its cgroup in each of `cgroups`, and of its network namespace
    folder: str  # disk, console and the mount point `root`
    cgroups: tuple[str, ...]

    def take_away(self) -> None:
        """All of it; what is not there any more is no mistake."""
        self._kill()
        root = f"{self.folder}/root"
        if os.path.ismount(root):
            _quietly("umount", "-l", root)
        for top in self.cgroups:
            for place, _, _ in os.walk(f"{top}/{self.name}", topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(place)
        if os.path.exists(f"/run/netns/{self.name}"):
            _quietly("ip", "netns", "del", self.name)  # a cable goes with it
        shutil.rmtree(self.folder, ignore_errors=True)

    def _kill(self) -> None:
        """Everything that runs in its cgroups."""
        deadline = time.monotonic() + KILL_S
        while (pids := self._pids()) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def _pids(self) -> set[int]:
        found: set[int] = set()
        for top in self.cgroups:
            for place, _, _ in os.walk(f"{top}/{self.name}"):
                with contextlib.suppress(OSError):
                    found |= {int(line) for line in Path(place, "cgroup.procs").read_text().split()}
        return found - {os.getpid(), 0}


class _Reaper:
    """The list, as the tests see it. The process is started with the first device."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def keep(self, remains: Remains) -> None:
        self._say({"keep": remains})

    def forget(self, remains: Remains) -> None:
        self._say({"forget": remains.name})

    def _say(self, words: dict[str, object]) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.device.leftovers"],
                stdin=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).resolve().parents[2],
                start_new_session=True,  # Ctrl-C and a kill of the group are for the tests
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()


reaper = _Reaper()


def _quietly(*words: str) -> None:
    subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)


def main() -> None:
    """Keep the list until the tests end, then take away what is on it."""
    standing: dict[str, Remains] = {}
    for line in sys.stdin:
        words = json.loads(line)
        if "keep" in words:
            name, folder, cgroups = words["keep"]
            standing[name] = Remains(name, folder, tuple(cgroups))
        else:
            standing.pop(words["forget"], None)
    for remains in standing.values():
        remains.take_away()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the end of the pipe is the only word that counts
    main()
