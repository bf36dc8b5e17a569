#!/usr/bin/python3
"""CPU of `edgeguard status` against `python3 -IS -c pass`: pairs, alternating, in the same run.

A server in another process answers with a real screen. The launcher is copied to a place of its own, so that it runs
as it is installed. The figure is the ratio of medians; CPU is user and system time of the waited-for child.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP), str(TOP / "tests/unit/cli")]
PAIRS = 60
BAR = 1.5  # times a bare interpreter
PYTHON = "/usr/bin/python3"


def cpu_of(arguments: list[str]) -> float:
    """Seconds of CPU that one child takes."""
    child = os.posix_spawn(
        PYTHON,
        [PYTHON, "-IS", *arguments],
        {"LANG": "C.UTF-8", "TERM": "xterm", "PATH": "/usr/bin:/bin"},
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)],
    )
    _, status, used = os.wait4(child, 0)
    if os.waitstatus_to_exitcode(status) not in {0, 2}:
        raise SystemExit(f"{arguments} ended with {os.waitstatus_to_exitcode(status)}")
    return used.ru_utime + used.ru_stime


def serve(path: str) -> int:
    """The pid of a server that answers on `path`."""
    ready, tell = os.pipe()
    child = os.fork()
    if child:
        os.close(tell)
        os.read(ready, 1)
        return child
    try:
        from fakes import BAD, Fake

        fake = Fake(path)
        fake.document = BAD
        os.write(tell, b".")
        fake.serving.loop.run()
    finally:
        os._exit(0)


def main() -> int:
    with tempfile.TemporaryDirectory() as place:
        launcher = shutil.copy(TOP / "packaging/bin/edgeguard", f"{place}/edgeguard")
        path = f"{place}/control.sock"
        server = serve(path)
        try:
            status = [launcher, f"--socket={path}"]
            cpu_of(status), cpu_of(["-c", "pass"])
            pairs = [(cpu_of(status), cpu_of(["-c", "pass"])) for _ in range(PAIRS)]
        finally:
            os.kill(server, 9)
            os.waitpid(server, 0)
    asked, bare = (statistics.median(column) * 1000 for column in zip(*pairs, strict=True))
    ratio = asked / bare
    reference = f"{asked:.1f} ms against {bare:.1f} ms of python3 -IS -c pass, medians of {PAIRS} pairs"
    row = {"name": "edgeguard status, CPU", "value": ratio, "unit": "x bare", "bar": BAR, "reference": reference}
    print(json.dumps(row))
    return 0 if ratio <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
