"""What `why PID` adds about a process, by psutil."""

from __future__ import annotations

import os

from edgeguard.cli.why import process_now


def test_a_process_that_runs() -> None:
    line = process_now(os.getpid())
    assert " MB, CPU " in line
    assert line.count("\n") == 1


def test_a_process_that_has_ended() -> None:
    assert process_now(2**30) == "  now: it has ended\n"
