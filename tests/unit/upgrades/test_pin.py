"""The hook: keeps what explains an upgrade, follows nothing, never fails, and stands alone."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import io
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgeguard.upgrades import transactions

PROGRAM = Path(__file__).parents[3] / "packaging/bin/edgeguard-pin"
HOOKS = Path(__file__).parents[3] / "packaging/hooks"


def loaded() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("edgeguard_pin", str(PROGRAM))
    spec = importlib.util.spec_from_loader("edgeguard_pin", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode = True
    loader.exec_module(module)
    return module


PIN = loaded()


@pytest.fixture
def device(tmp_path: Path) -> Path:
    for path in ("root/var/lib/dpkg/info", "root/var/lib/apt/lists/partial", "root/cache", "spool"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "root/cache/aa_2_all.deb").write_text("deb")
    (tmp_path / "root/var/lib/dpkg/info/aa.list").write_text("/.\n/usr/bin/a\n")
    (tmp_path / "root/var/lib/apt/lists/x_InRelease").write_text("r")
    (tmp_path / "root/var/lib/apt/lists/x_main_binary-all_Packages").write_text("p")
    (tmp_path / "root/var/lib/apt/lists/lock").write_text("")
    return tmp_path


def by_apt(device: Path, *lines: str) -> transactions.Transaction:
    PIN.Pin(str(device / "root"), str(device / "spool"), 7).apt([line.encode() for line in lines])
    (name,) = transactions.ids(str(device / "spool"))
    return transactions.read(str(device / "spool"), name)


def upgrade(device: Path) -> str:
    return f"aa 1 all none < 2 all none {device}/root/cache/aa_2_all.deb"


def test_what_apt_says_is_kept(device: Path) -> None:
    found = by_apt(
        device, upgrade(device), "bb 3 amd64 same > - - none **REMOVE**", "cc 1 all none = 1 all none **CONFIGURE**"
    )
    assert found.debs == ("00000.deb",)
    assert found.before["aa"] == "1"
    assert [removal.name for removal in found.removals] == ["bb"]
    assert found.owned == ("aa",)
    assert found.indexes == ("x_InRelease", "x_main_binary-all_Packages")
    assert found.missing == ()
    assert found.id.endswith("-7")
    kept = device / "spool" / found.id / "00000.deb"
    assert kept.stat().st_ino == (device / "root/cache/aa_2_all.deb").stat().st_ino, "a second name, no copy"


def test_the_kept_list_is_the_old_one(device: Path) -> None:
    found = by_apt(device, upgrade(device))
    new = device / "root/var/lib/dpkg/info/aa.list-new"
    new.write_text("/usr/bin/b\n")
    new.rename(device / "root/var/lib/dpkg/info/aa.list")  # as dpkg does
    assert (device / "spool" / found.id / "owned.aa.list").read_text() == "/.\n/usr/bin/a\n"


@pytest.mark.parametrize("action", ["remove", "purge", "unpack"])
def test_the_postrm_of_a_package_that_goes_is_kept(device: Path, action: str) -> None:
    info = device / "root/var/lib/dpkg/info"
    for name in ("aa.postrm", "bb:amd64.postrm", "aa.postinst"):
        (info / name).write_text("#!/bin/sh\n")
    pin = PIN.Pin(str(device / "root"), str(device / "spool"), 0)
    pin.dpkg(["dpkg", f"--{action}", "aa", "bb:amd64"], action, "/")
    (name,) = transactions.ids(str(device / "spool"))
    found = transactions.read(str(device / "spool"), name)
    assert found.scripts == (("aa", "bb:amd64") if action != "unpack" else ())
    transactions.forget(str(device), str(device / "spool"), name)
    found = by_apt(device, upgrade(device), "bb 3 amd64 same > - - none **REMOVE**")
    assert found.scripts == ("bb:amd64",), "the upgraded one's is replaced by a signed one"


def test_a_package_that_cannot_be_kept_is_missing(device: Path) -> None:
    found = by_apt(device, f"aa 1 all none < 2 all none {device}/nowhere/aa_2_all.deb")
    assert found.debs == ()
    assert found.missing == (f"{device}/nowhere/aa_2_all.deb",)


def test_links_where_packages_should_be_are_not_kept(device: Path) -> None:
    (device / "root/var/lib/dpkg/info/aa.list").unlink()
    (device / "root/var/lib/dpkg/info/aa.list").symlink_to("/etc/shadow")
    fifo = device / "root/cache/ff_1_all.deb"
    os.mkfifo(fifo)
    found = by_apt(device, upgrade(device), f"ff - - none < 1 all none {fifo}")
    assert found.owned == ()
    assert found.debs == ("00000.deb",)


def test_names_that_lead_elsewhere(device: Path) -> None:
    found = by_apt(device, "../../x 1 all none > - - none **REMOVE**", upgrade(device))
    assert found.removals == ()
    assert found.debs == ("00000.deb",)


def test_plain_dpkg(device: Path) -> None:
    pin = PIN.Pin(str(device / "root"), str(device / "spool"), 0)
    pin.dpkg(["dpkg", "--status-fd", "5", "-i", "aa_2_all.deb"], "install", str(device / "root/cache"))
    (name,) = transactions.ids(str(device / "spool"))
    found = transactions.read(str(device / "spool"), name)
    assert (found.hook, found.action, found.debs, found.owned) == ("dpkg", "install", ("00000.deb",), ("aa",))


def test_dpkg_in_a_directory(device: Path) -> None:
    pin = PIN.Pin(str(device / "root"), str(device / "spool"), 0)
    pin.dpkg(["dpkg", "--unpack", "--recursive", str(device / "root/cache")], "unpack", "/")
    (name,) = transactions.ids(str(device / "spool"))
    assert transactions.read(str(device / "spool"), name).debs == ("00000.deb",)


def test_dpkg_takes_packages_away(device: Path) -> None:
    PIN.Pin(str(device / "root"), str(device / "spool"), 0).dpkg(["dpkg", "--purge", "aa"], "purge", "/")
    (name,) = transactions.ids(str(device / "spool"))
    found = transactions.read(str(device / "spool"), name)
    assert [removal.name for removal in found.removals] == ["aa"]
    assert found.owned == ("aa",)


def test_the_oldest_make_room(device: Path) -> None:
    for _ in range(PIN.WAITING_MAX + 5):
        PIN.Pin(str(device / "root"), str(device / "spool"), 0).dpkg(
            ["dpkg", "-i", "cache/aa_2_all.deb"], "install", "/"
        )
    assert len(list((device / "spool").iterdir())) == PIN.WAITING_MAX


def test_a_spool_that_is_a_link_is_not_followed(device: Path) -> None:
    (device / "spool").rmdir()
    (device / "elsewhere").mkdir()
    (device / "spool").symlink_to("elsewhere")
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        PIN.Pin(str(device / "root"), str(device / "spool"), 0)
    assert list((device / "elsewhere").iterdir()) == []


def test_copies_have_bounds(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_disk(*_: Any, **__: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    found = by_apt(device, upgrade(device))
    assert (device / "spool" / found.id / "00000.deb").read_text() == "deb"
    assert found.indexes == (), "indexes are never copied"
    monkeypatch.setattr(PIN, "COPY_MAX", 2)
    PIN.Pin(str(device / "root"), str(device / "spool"), 8).apt([upgrade(device).encode()])
    newest = transactions.read(str(device / "spool"), transactions.ids(str(device / "spool"))[-1])
    assert newest.debs == ()
    assert newest.missing


def test_a_full_disk(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def full(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(28, "No space left on device")
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", full)
    found = by_apt(device, upgrade(device))
    assert found.debs == ("00000.deb",)
    assert found.owned == ("aa",)


@pytest.mark.parametrize("line", [b"RootDir=/mnt", b"Dir=/target", b"DPkg::Chroot-Directory=/x"])
def test_another_root_is_not_ours(monkeypatch: pytest.MonkeyPatch, line: bytes) -> None:
    def said(data: bytes) -> list[bytes]:
        monkeypatch.setattr(PIN.os, "fdopen", lambda _fd, _mode: io.BytesIO(data))
        found: list[bytes] = PIN.apt_lines()
        return found

    assert said(b"VERSION 3\nDir=/\n\na b\n") == [b"a b"]
    with pytest.raises(ValueError, match=r"^$"):
        said(b"VERSION 3\n" + line + b"\n\na b\n")
    with pytest.raises(ValueError, match=r"^$"):
        said(b"VERSION 2\n\na b\n")


def run(*words: str, data: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    words = (sys.executable, "-IS", str(PROGRAM), *words)
    return subprocess.run(
        words, input=data, env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True, check=False
    )


@pytest.mark.parametrize("words", [(), ("apt",), ("dpkg",), ("nonsense", "x")])
def test_it_never_fails_and_says_nothing(words: tuple[str, ...]) -> None:
    """Without a spool, without dpkg above it, with nonsense from apt."""
    done = run(*words, data=b"nonsense", DPKG_ROOT="/elsewhere")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_it_ends_when_apt_says_nothing(tmp_path: Path) -> None:
    read, write = os.pipe()  # an apt that hangs
    code = f"import runpy; m = runpy.run_path({str(PROGRAM)!r})['main']; m.__globals__['LIMIT_S'] = 1; "
    try:
        began = time.monotonic()
        words = [sys.executable, "-IS", "-c", code + f"m(['apt'], '/', {str(tmp_path)!r}, {str(tmp_path)!r})"]
        done = subprocess.run(words, stdin=read, check=False, capture_output=True)
        assert done.returncode == -14
        assert time.monotonic() - began < 4
    finally:
        os.close(read)
        os.close(write)


def test_without_a_baseline_nothing_is_kept(device: Path) -> None:
    """An image that is being built must not grow by every package that is installed in it."""
    code = f"import runpy; m = runpy.run_path({str(PROGRAM)!r})['main']; "
    call = f"m(['dpkg'], {str(device / 'root')!r}, {str(device / 'spool')!r}, {{!r}})"
    for judged, kept in ((str(device / "nowhere"), 0), (str(device), 1)):
        words = ["dash", "-c", '"$0" -IS -c "$1"; :', sys.executable, code + call.format(judged)]
        # a program that is called dpkg stands above it, as it does when dpkg calls
        dpkg = device / "dpkg"
        if not dpkg.exists():
            dpkg.write_bytes(Path("/bin/dash").read_bytes())
            dpkg.chmod(0o755)
        words[0] = str(dpkg)
        subprocess.run(words, check=True, env={"DPKG_HOOK_ACTION": "configure", "PATH": "/usr/bin:/bin"})
        assert len(list((device / "spool").iterdir())) == kept, judged


def test_it_stands_alone() -> None:
    imported = {
        alias.name
        for node in ast.walk(ast.parse(PROGRAM.read_text()))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert imported == {"errno", "os", "signal", "stat", "sys", "time"}
    assert "from " not in [line[:5] for line in PROGRAM.read_text().splitlines()]


def test_the_hooks_do_nothing_without_the_program() -> None:
    """Settings stay when the package is removed."""
    assert "|| true" in (HOOKS / "90edgeguard").read_text()
    (line,) = [line for line in (HOOKS / "edgeguard").read_text().splitlines() if not line.startswith("#")]
    command = line.partition("=")[2].strip('"').replace("/usr/lib/edgeguard/edgeguard-pin", "/nonexistent/pin")
    done = subprocess.run(["sh", "-c", command], env={"DPKG_HOOK_ACTION": "install"}, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_oldest_go_before_the_disk_is_full(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link keeps what apt deletes afterwards."""
    by_apt(device, upgrade(device))
    (device / "spool/00000000000000000001-0").mkdir()
    (device / "spool/00000000000000000001-0/inner").mkdir()  # nothing of ours
    real = os.fstatvfs

    def nearly_full(fd: int) -> Any:
        there = real(fd)
        return types.SimpleNamespace(f_bavail=1, f_frsize=there.f_frsize)

    monkeypatch.setattr(os, "fstatvfs", nearly_full)
    PIN.Pin(str(device / "root"), str(device / "spool"), 8).apt([upgrade(device).encode()])
    other, kept = sorted(os.listdir(device / "spool"))
    assert other == "00000000000000000001-0"
    assert kept.endswith("-8"), "the old one is gone, the new one is there"
