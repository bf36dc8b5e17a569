"""What a process has for its root directory, by its mount table alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeguard.linux.mounts import root_of

HOST = "1 0 8:2 / / rw - ext4 /dev/sda2 rw\n2 1 0:20 / /tmp rw - tmpfs tmpfs rw\n"


def table(tmp_path: Path, text: str) -> tuple[str, str] | None:
    (tmp_path / "7").mkdir(exist_ok=True)
    (tmp_path / "7/mountinfo").write_text(text)
    return root_of(7, str(tmp_path))


def test_the_host_and_who_hides_behind_mounts(tmp_path: Path) -> None:
    ours = table(tmp_path, HOST)
    assert ours == ("8:2", "/")
    assert table(tmp_path, HOST + "3 1 8:2 /tmp/systemd-private-1/tmp /tmp rw - ext4 /dev/sda2 rw\n") == ours


@pytest.mark.parametrize(
    "text",
    [
        "1 0 0:50 / / rw - overlay overlay rw\n",  # a container
        "1 0 8:2 /srv/root / rw - ext4 /dev/sda2 rw\n",  # RootDirectory=
        HOST + "9 1 0:51 / / rw - tmpfs tmpfs rw\n",  # mounted over it
        "2 1 0:20 / /tmp rw - tmpfs tmpfs rw\n",  # chroot
    ],
)
def test_another_root(tmp_path: Path, text: str) -> None:
    assert table(tmp_path, text) != ("8:2", "/")
