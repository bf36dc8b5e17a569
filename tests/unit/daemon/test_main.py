"""What the daemon needs before it starts, and what it can do without."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeguard.daemon.main import prepare
from edgeguard.settings import Paths, Settings


@pytest.fixture(autouse=True)
def own_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_directories_have_their_modes(tmp_path: Path) -> None:
    prepare(Settings(paths=Paths(state=f"{tmp_path}/s", runtime=f"{tmp_path}/r", exchange=f"{tmp_path}/x")))
    modes = {name: stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("s", "s/keys", "r", "x", "x/inbox")}
    assert modes == {"s": 0o750, "s/keys": 0o700, "r": 0o755, "x": 0o755, "x/inbox": 0o2770}


def test_a_device_is_guarded_although_nothing_can_be_sent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("somebody put a file where the exchange should be")
    prepare(Settings(paths=Paths(state=f"{tmp_path}/s", runtime=f"{tmp_path}/r", exchange=f"{tmp_path}/file/x")))
    assert (tmp_path / "s/spool").is_dir()


def test_without_a_place_for_its_state_it_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        prepare(Settings(paths=Paths(state=f"{tmp_path}/file/s", runtime=f"{tmp_path}/r")))
