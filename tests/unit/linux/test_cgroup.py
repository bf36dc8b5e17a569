"""Limits that hold, that nobody set, and whose controller is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeguard.linux import cgroup

MOUNTS = "30 1 0:26 / {point} rw - cgroup2 cgroup2 rw\n31 1 0:27 / /old rw - cgroup cgroup rw,memory\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/old\n0::/system.slice/x.service\n")
    (tmp_path / "proc/self/mountinfo").write_text(MOUNTS.format(point=tmp_path / "cgroup"))
    (tmp_path / "cgroup/system.slice/x.service").mkdir(parents=True)
    return tmp_path / "proc"


@pytest.mark.parametrize(
    ("memory", "tasks", "void"),
    [
        ("268435456", "32", ()),
        ("max", "32", ("memory",)),
        (None, "32", ("memory",)),
        (None, None, ("memory", "tasks")),
        ("rubbish", "", ("memory", "tasks")),
    ],
)
def test_what_is_not_limited(proc: Path, memory: str | None, tasks: str | None, void: tuple[str, ...]) -> None:
    unit = proc.parent / "cgroup/system.slice/x.service"
    for name, value in (("memory.max", memory), ("pids.max", tasks)):
        if value is not None:
            (unit / name).write_text(value + "\n")
    assert cgroup.unlimited(str(proc)) == void


def test_without_version_2_nothing_is_limited(proc: Path) -> None:
    (proc / "self/cgroup").write_text("4:memory:/old\n")
    assert cgroup.unlimited(str(proc)) == ("memory", "tasks")
    (proc / "self/cgroup").unlink()
    assert cgroup.unlimited(str(proc)) == ("memory", "tasks")
