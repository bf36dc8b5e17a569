"""Proof that the kernel tells of programs that start: run one that does nothing, and wait for the word of it."""

from __future__ import annotations

import os
import select
import time

from edgeguard.errors import Unavailable
from edgeguard.linux.procconn import ProcConnector

SELF_TEST_S = 0.5  # for the event of our own exec; it comes within a millisecond


def prove(connector: ProcConnector) -> None:
    """Run a program and wait for the kernel to tell of it. In a container it tells of other pids, or nothing.

    Raises Unavailable."""
    pid = run_nothing()
    if not pid:
        raise Unavailable("no program to prove it with")
    poll = select.poll()
    poll.register(connector.fileno(), select.POLLIN)
    deadline = time.monotonic() + SELF_TEST_S
    while (left := deadline - time.monotonic()) > 0 and poll.poll(left * 1000):
        if pid in list(connector.execs()):
            return
    raise Unavailable("proc connector: our own exec was not reported (another pid namespace?)")


def run_nothing() -> int:
    """Run a program that does nothing and wait for its end; its pid, 0 if there is none to run."""
    for path in ("/bin/true", "/usr/bin/true"):
        try:
            pid = os.posix_spawn(path, ["true"], {})
        except OSError:
            continue
        os.waitpid(pid, 0)
        return pid
    return 0
