"""The guard without its sensors: what it keeps, and when."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from edgeguard.daemon.guard import Guard
from edgeguard.daemon.loop import Loop
from edgeguard.daemon.publish import replace_file
from edgeguard.settings import Paths, Settings


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    for name in ("state", "run", "exchange"):
        (tmp_path / name).mkdir()
    paths = Paths(
        root=str(tmp_path), state=f"{tmp_path}/state", runtime=f"{tmp_path}/run", exchange=f"{tmp_path}/exchange"
    )
    return Guard(Loop(), Settings(paths=paths), "", lambda _line: None)


def test_an_urgent_change_does_not_wait_for_a_lazy_save(guard: Guard) -> None:
    guard._plan_save(urgent=False)
    lazy = guard._save_timer
    guard._plan_save(urgent=True)
    assert lazy is not None
    assert guard._save_timer is not None
    assert guard._save_timer.due < lazy.due - 100
    assert lazy.callback is None
    soon = guard._save_timer
    guard._plan_save(urgent=False)
    assert guard._save_timer is soon


def test_a_disk_that_takes_a_part_does_not_replace_the_ledger(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "ledger.cbor"
    path.write_bytes(b"the ledger as it was")
    written = os.write
    room = [7]

    def nearly_full(fd: int, data: Any) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "full")
        taken = written(fd, bytes(data)[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", nearly_full)
    with pytest.raises(OSError, match="full"):
        replace_file(str(path), b"a ledger that is new and longer")
    assert path.read_bytes() == b"the ledger as it was"


def test_a_ledger_that_could_not_be_saved_is_saved_later(guard: Guard, monkeypatch: Any) -> None:
    def full(_path: str, _data: bytes, _mode: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("edgeguard.daemon.guard.replace_file", full)
    Path(f"{guard.settings.paths.state}/observed.db.swept").write_bytes(b"swept")
    guard._adopt_swept()
    assert not os.path.exists(f"{guard.settings.paths.state}/observed.db")
    assert guard._save_timer is not None
    monkeypatch.undo()
    guard._adopt_swept()
    assert Path(f"{guard.settings.paths.state}/observed.db").read_bytes() == b"swept"
