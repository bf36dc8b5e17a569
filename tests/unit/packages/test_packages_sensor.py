"""Sensor `packages` on a made-up dpkg database; who owns a path."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.sensors import Context, packages, parse_dpkg
from edgeguard.sensors.packages import Ownership, Packages
from edgeguard.upgrades.overlay import Notable

STATUS = b"""Package: dpkg
Status: install ok installed
Architecture: arm64
Version: 1.21.22
Description: package tool
 Version: 9 (a continuation line is no field)

Package: libc6
Status: install ok installed
Architecture: armhf
Version: 2.36-9

Package: half
Status: hold reinstreq half-configured
Architecture: all
Version: 1

Package: gone
Status: deinstall ok config-files
Architecture: arm64
Version: 2

Package: never
Status: unknown ok not-installed
Architecture: all

Package: nostatus

Status: install ok installed
Package: last
Architecture: all
Version: 3"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    info = tmp_path / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_bytes(STATUS)
    (info / "bash.list").write_text("/.\n/bin\n/bin/bash\n/usr/share/doc/bash\n")
    (info / "libc6:armhf.list").write_text("/.\n/lib/arm-linux-gnueabihf/libc.so.6\n")
    (info / "big.list").write_text(
        "/.\n" + "".join(f"/usr/share/big/{n:07d}\n" for n in range(20_000)) + "/usr/bin/big\n"
    )
    (info / "bash.md5sums").write_text("\n/usr/bin/other\n")
    return tmp_path


def test_packages(root: Path) -> None:
    sensor = Packages(Context(root=str(root)))
    assert sensor.start().proven
    seen = {each.subject: each.columns for each in sensor.observe(1)}
    assert list(seen) == ["dpkg", "libc6:armhf", "half", "gone", "last"]
    assert seen["dpkg"]["version"] == "1.21.22"
    assert seen["half"] == {
        "version": "1",
        "status": "half-configured",
        "architecture": "all",
        "hold": True,
        "reinstall": True,
        "vouched": "",
        "files": 0,
        "came_from": "",
    }
    assert seen["gone"]["status"] == "config-files"


@pytest.mark.parametrize("said", ["Version: 4\n", "Version: 3\n", "Version: 3\nStatus: deinstall ok config-files\n"])
def test_what_somebody_should_know_of_whatever_dpkg_says(root: Path, said: str) -> None:
    (root / "var/lib/dpkg/status").write_text(f"Package: last\n{said}Status: install ok installed\n")
    came = Notable("last", "3", "nobody", 7, "5")
    context = Context(root=str(root), came=lambda name: came if name == "last" else None)
    (seen,) = Packages(context).observe(1)
    columns = seen.columns
    assert (columns["vouched"], columns["files"], columns["came_from"]) == ("nobody", 7, "5")


def test_what_somebody_should_know_of_and_dpkg_does_not(root: Path) -> None:
    came = Notable("evil", "3", "nobody", 7, "")
    context = Context(
        root=str(root), came=lambda name: came if name == "evil" else None, notable=lambda: ("evil", "nothing")
    )
    seen = {each.subject: each.columns for each in Packages(context).observe(1)}
    assert list(seen) == ["dpkg", "libc6:armhf", "half", "gone", "last", "evil"]
    assert (seen["evil"]["vouched"], seen["evil"]["version"]) == ("nobody", "3")
    assert set(seen["evil"]) == set(seen["dpkg"])


def test_no_dpkg_is_said(tmp_path: Path) -> None:
    sensor = Packages(Context(root=str(tmp_path)))
    assert sensor.start().blind
    assert list(sensor.observe(1)) == []


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("/bin/bash", "bash"),
        ("/usr/bin/bash", "bash"),  # merged: the list says /bin
        ("/lib/arm-linux-gnueabihf/libc.so.6", "libc6:armhf"),
        ("/usr/lib/arm-linux-gnueabihf/libc.so.6", "libc6:armhf"),
        ("/usr/bin/big", "big"),
        ("/bin/big", "big"),
        ("/usr/share/big/0019999", "big"),
        ("/usr/share/big/001999", ""),
        ("/share/big/0019999", ""),  # only the merged directories have two names
        ("/usr/bin/other", ""),  # .md5sums is no list
        ("/usr/bin/ba\nsh", ""),
        ("bash", ""),
        ("/", ""),
        ("/bin", "bash"),
    ],
)
def test_owner(root: Path, path: str, owner: str) -> None:
    assert Ownership(str(root)).package_of(path) == owner


def test_places_without_packages_are_not_searched(root: Path) -> None:
    (root / "var/lib/dpkg/info/odd.list").write_text("/tmp/x\n/tmpx\n")
    assert Ownership(str(root)).package_of("/tmp/x") == ""
    assert Ownership(str(root)).package_of("/tmpx") == "odd"


def test_every_line_is_found_however_the_file_is_cut(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "CHUNK", 64)
    ownership = Ownership(str(root))
    (root / "var/lib/dpkg/info/big.list").write_text("/.\n" + "".join(f"/u/{n * n}\n" for n in range(200)))
    assert all(ownership._owner(b"/u/%d" % (n * n)) == "big" for n in range(200))


def test_answers_are_remembered_until_dpkg_writes(root: Path) -> None:
    ownership = Ownership(str(root))
    assert ownership.package_of("/usr/bin/new") == ""
    info = root / "var/lib/dpkg/info"
    (info / "new.list").write_text("/usr/bin/new\n")
    os.utime(info, ns=(1, 1))
    assert ownership.package_of("/usr/bin/new") == "new"
    for number in range(packages.CACHE_MAX + 10):
        ownership.package_of(f"relative{number}")
    assert len(ownership._known) == packages.CACHE_MAX


def test_diversions(root: Path) -> None:
    (root / "var/lib/dpkg/info/divert.list").write_text("/usr/bin/bash\n")
    (root / "var/lib/dpkg/diversions").write_text("/bin/bash\n/bin/bash.real\ndivert\n")
    ownership = Ownership(str(root))
    assert ownership.package_of("/bin/bash") == "divert"
    assert ownership.package_of("/bin/bash.real") == "bash"


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="no dpkg here")
def test_the_same_as_dpkg_here() -> None:
    said = subprocess.run(
        ["dpkg-query", "-W", "-f", "${binary:Package} ${Version} ${db:Status-Status}\n"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\n")
    seen = {each.subject: each.columns for each in Packages(Context()).observe(1)}
    for line in filter(None, said):
        name, version, status = line.split(" ")
        if status == "not-installed":
            continue
        columns = seen.get(name) or seen[name.partition(":")[0]]
        assert (columns["version"], columns["status"]) == (version, status)
    assert len(seen) == len([line for line in said if line and not line.endswith(" not-installed")])
    assert Ownership().package_of("/usr/bin/dpkg") == "dpkg"


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    list(parse_dpkg.packages(data.split(b"\n")))
    parse_dpkg.diversions(data)
    assert data in parse_dpkg.aliases(data)
