"""Helpers are waited for with a pidfd, and without one where there is none to have."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgeguard.daemon.helpers import Helpers
from edgeguard.daemon.loop import Loop
from tests import lent

# It closes its output long before it ends: the daemon must wait for the end all the same.
PROGRAM = "import os, time\nos.close(1)\ntime.sleep(0.1)\nos._exit(3)\n"


def refused(_pid: int) -> int:
    raise OSError(errno.ENOSYS, "Function not implemented")


@pytest.mark.parametrize("pidfd", [True, False])
def test_a_helper_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pidfd: bool) -> None:
    if not pidfd:
        monkeypatch.setattr(os, "pidfd_open", refused)
    program = tmp_path / "program"
    program.write_text(PROGRAM)
    loop = Loop()
    helpers = Helpers(loop, str(program), "")
    before = lent.open_now()
    ends: list[str] = []
    assert helpers.start("sweep", {}, lambda _message: None, ends.append, timeout_s=30)
    pid = helpers.running["sweep"].pid
    while not ends:
        loop.turn(loop._timeout())
    assert ends == ["ended with exit code 3"]
    assert helpers.running == {}
    assert lent.open_now() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


@pytest.mark.parametrize("pidfd", [True, False])
def test_one_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pidfd: bool) -> None:
    if not pidfd:
        monkeypatch.setattr(os, "pidfd_open", refused)
    program = tmp_path / "program"
    program.write_text("import time\ntime.sleep(600)\n")
    loop = Loop()
    ends: list[str] = []
    assert Helpers(loop, str(program), "").start("sweep", {}, lambda _message: None, ends.append, timeout_s=0.2)
    while not ends:
        loop.turn(loop._timeout())
    assert ends == ["took too long and was ended"]
