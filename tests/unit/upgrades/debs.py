"""Small .debs and a small device to install them on, for the tests of this folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from edgeguard.model import Watch

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
WATCHES = (
    Watch("/", "other", only="setid"),
    Watch("/usr", "program", exclude=("**/*.dpkg-*",)),
    Watch("/etc", "config", exclude=("**/*.dpkg-*",)),
    Watch("/var/lib/dpkg/info/*.postinst", "script"),
    Watch("/var/lib/dpkg/info/*.postrm", "script"),
)


def deb(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, str],
    *,
    conffiles: str = "",
    postinst: str = "",
    modes: Mapping[str, int] | None = None,
    links: Mapping[str, str] | None = None,
    architecture: str = "all",
    prepare: Callable[[Path], None] = lambda _tree: None,
) -> Path:
    """Build NAME_VERSION_ARCHITECTURE.deb below `folder`. Its owner is whoever runs the tests."""
    tree = folder / f"tree-{name}-{version}"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: {architecture}\n"
        "Maintainer: A <a@example.org>\nDescription: x\n"
    )
    if conffiles:
        (tree / "DEBIAN/conffiles").write_text(conffiles)
    if postinst:
        (tree / "DEBIAN/postinst").write_text(postinst)
        (tree / "DEBIAN/postinst").chmod(0o755)
    for path, text in files.items():
        target = tree / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod((modes or {}).get(path, 0o644))
    for path, where in (links or {}).items():
        target = tree / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(where)
    prepare(tree)
    for directory in (tree, *(path for path in tree.rglob("*") if path.is_dir() and not path.is_symlink())):
        directory.chmod(0o755)
    made = folder / f"{name}_{version}_{architecture}.deb"
    subprocess.run(["dpkg-deb", "-Zgzip", "--build", str(tree), str(made)], check=True, capture_output=True)
    return made


class Home:
    """A root, a state and a spool; packages are "installed" by unpacking them."""

    def __init__(self, top: Path) -> None:
        self.root, self.state, self.spool = top / "root", top / "state", top / "spool"
        for path in (self.root, self.state / "upgrades", self.spool, self.root / "var/lib/dpkg/info"):
            path.mkdir(parents=True)
        (self.root / "usr/bin").mkdir(parents=True)
        (self.root / "etc").mkdir()
        self.status: dict[str, str] = {}
        self.count = 0

    def install(self, path: Path, *, status: str = "installed") -> None:
        """What dpkg would do: unpack, and say so."""
        name, version, architecture = path.stem.split("_")
        stream = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(path)], check=True, capture_output=True).stdout
        plain = self.root.parent / "data.tar"
        plain.write_bytes(stream)
        with tarfile.open(plain) as tar:
            tar.extractall(self.root, filter="tar") if hasattr(tarfile, "tar_filter") else tar.extractall(self.root)
            names = [member.name.removeprefix(".") for member in tar]
        (self.root / f"var/lib/dpkg/info/{name}.list").write_text("\n".join(name or "/." for name in names) + "\n")
        self.say(name, version, status, architecture)

    def say(self, name: str, version: str, status: str = "installed", architecture: str = "all") -> None:
        self.status[name] = (
            f"Package: {name}\nStatus: install ok {status}\nArchitecture: {architecture}\nVersion: {version}\n"
        )
        (self.root / "var/lib/dpkg/status").write_text("\n".join(self.status.values()))

    def transaction(self, *debs: Path, removed: tuple[str, ...] = (), before: Mapping[str, str] | None = None) -> str:
        """What the hook would leave."""
        self.count += 1
        name = f"{time.time_ns() - 10**9 + self.count:020d}-0"
        folder = self.spool / name
        folder.mkdir()
        lines = []
        for number, path in enumerate(debs):
            os.link(path, folder / f"{number:05d}.deb")
            package, version, _ = path.stem.split("_")
            old = (before or {}).get(package, "-")
            lines.append(f"{package} {old} all none < {version} all none {path}")
        lines += [f"{package} 1 all none > - - none **REMOVE**" for package in removed]
        for package in [path.stem.split("_")[0] for path in debs] + list(removed):
            owned = self.root / f"var/lib/dpkg/info/{package}.list"
            if owned.exists():
                (folder / f"owned.{package}.list").write_bytes(owned.read_bytes())
        for package in removed:
            postrm = self.root / f"var/lib/dpkg/info/{package}.postrm"
            if postrm.exists():
                (folder / f"script.{package}.postrm").write_bytes(postrm.read_bytes())
        (folder / "apt").write_text("\n".join(lines))
        (folder / "debs").write_text("\0".join(str(path) for path in debs))
        return name
