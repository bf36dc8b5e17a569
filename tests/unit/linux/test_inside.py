"""A path in another root directory leads nowhere else, whatever its symlinks say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeguard.linux.inside import inside, parent_inside
from edgeguard.sensors import reading


@pytest.fixture
def root(tmp_path: Path) -> str:
    for name in ("etc", "usr/lib", "var"):
        (tmp_path / "root" / name).mkdir(parents=True)
    return str(tmp_path / "root")


@pytest.mark.parametrize(
    ("target", "leads"),
    [
        ("usr/lib", "/usr/lib/x"),
        ("/usr/lib", "/usr/lib/x"),
        ("../../../../usr/lib", "/usr/lib/x"),
        ("/../../etc/../usr//lib/.", "/usr/lib/x"),
        ("/", "/x"),
        ("..", "/x"),
        ("/not/there", "/not/there/x"),
    ],
)
def test_a_symlink_means_what_it_means_to_who_runs_from_that_root(root: str, target: str, leads: str) -> None:
    os.symlink(target, f"{root}/lib")
    assert inside(root, "/lib/x") == root + leads


def test_symlinks_that_lead_to_symlinks_stay_inside(root: str) -> None:
    os.symlink("/etc/two", f"{root}/one")
    os.symlink("../../../../../../etc/shadow", f"{root}/etc/two")
    assert inside(root, "/one") == f"{root}/etc/shadow"


def test_the_last_component_may_be_what_is_asked_about(root: str) -> None:
    os.symlink("/usr/lib", f"{root}/lib")
    os.symlink("/etc/passwd", f"{root}/usr/lib/x")
    assert parent_inside(root, "/lib/x") == f"{root}/usr/lib/x"
    assert inside(root, "/lib/x") == f"{root}/etc/passwd"


def test_a_circle_is_an_error_and_no_endless_way(root: str) -> None:
    os.symlink("b", f"{root}/a")
    os.symlink("a", f"{root}/b")
    with pytest.raises(OSError, match="symbolic links"):
        inside(root, "/a/x")


def test_dots_do_not_climb_out(root: str) -> None:
    assert inside(root, "/../../etc/./x") == f"{root}/etc/x"
    assert inside(root, "/") == root


def test_a_circle_is_no_missing_file_to_a_sensor(root: str) -> None:
    os.symlink("b", f"{root}/a")
    os.symlink("/a", f"{root}/b")
    with pytest.raises(OSError, match="too long"):
        reading.read(reading.under(root, "/a"), 10)
    assert reading.under("/", "/a") == "/a"
