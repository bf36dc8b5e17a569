#!/usr/bin/python3
"""Builds dist/edgeguard_*.deb and dist/edgeguard-collector_*.deb from this tree; needs dpkg-dev, debhelper, dh-python.

The same tree gives the same bytes on the same Debian release, whatever the time, umask, user or time zone:
times come from the newest entry of CHANGELOG.md, modes are set here, and the build sees an environment of its own.
`SOURCE_DATE_EPOCH` overrides the time.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).resolve().parents[2]
PARTS = ("CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", "edgeguard", "packaging", "systemd")
MAINTAINER = "The EdgeGuard authors <edgeguard@example.org>"


class Release(NamedTuple):
    version: str
    date: datetime
    changes: list[str]


def releases(text: str) -> list[Release]:
    """The entries of CHANGELOG.md: headings `## VERSION (YYYY-MM-DD)` with bullets below."""
    found = []
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        match = re.fullmatch(r"(\S+) \((\d{4}-\d\d-\d\d)\)", heading.strip())
        if not match:
            raise SystemExit(f"CHANGELOG.md: {heading!r} is not `VERSION (YYYY-MM-DD)`")
        changes = [
            " ".join(item.split()) for item in re.findall(r"^- (.*?)(?=^- |\Z|^$)", body, re.DOTALL | re.MULTILINE)
        ]
        found.append(Release(match[1], datetime.fromisoformat(match[2]).replace(tzinfo=UTC), changes))
    return found


def debian_changelog(entries: list[Release]) -> str:
    """The same in Debian's form, wrapped at 80 columns."""
    stanzas = []
    for entry in entries:
        items = [textwrap.fill(x, 78, initial_indent="  * ", subsequent_indent="    ") for x in entry.changes]
        body = "\n".join(items or ["  * See CHANGELOG.md."])
        date = format_datetime(entry.date)
        stanzas.append(f"edgeguard ({entry.version}) unstable; urgency=medium\n\n{body}\n\n -- {MAINTAINER}  {date}\n")
    return "\n".join(stanzas)


def tracked() -> list[str]:
    """Files of PARTS: what git knows or would take; without git, everything but compiled code."""
    if (TOP / ".git").exists() and shutil.which("git"):
        # safe.directory: the tree may belong to another user than the one that builds
        command = ["git", "-c", f"safe.directory={TOP}", "ls-files", "-zco", "--exclude-standard", "--", *PARTS]
        listed = subprocess.run(command, cwd=TOP, check=True, capture_output=True).stdout
        return sorted(name for name in os.fsdecode(listed).split("\0") if name and (TOP / name).is_file())
    names = []
    for part in PARTS:
        found = [TOP / part] if (TOP / part).is_file() else (TOP / part).rglob("*")
        names += [str(x.relative_to(TOP)) for x in found if x.is_file() and "__pycache__" not in x.parts]
    return sorted(names)


def stage(target: Path, epoch: int) -> None:
    """A clean copy of the tree with debian/ in place and all modes and times fixed."""
    shutil.rmtree(target, ignore_errors=True)
    for name in tracked():
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(TOP / name, copy)
        copy.chmod(0o755 if os.access(TOP / name, os.X_OK) else 0o644)
    debian = target / "debian"
    shutil.copytree(target / "packaging/debian", debian)
    for unit in sorted((target / "systemd").iterdir()):
        shutil.copy(unit, debian / debhelper_name(unit.name))
    entries = releases((target / "CHANGELOG.md").read_text())
    (debian / "changelog").write_text(debian_changelog(entries))
    (debian / "changelog").chmod(0o644)
    for path in [target, *target.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
        os.utime(path, (epoch, epoch))


def debhelper_name(unit: str) -> str:
    """edgeguard-act.socket belongs to package edgeguard: edgeguard.edgeguard-act.socket; edgeguard.service stays."""
    package = "edgeguard-collector" if unit.startswith("edgeguard-collector") else "edgeguard"
    return unit if unit.startswith(package + ".") else f"{package}.{unit}"


def main() -> int:
    source = (TOP / "edgeguard/__init__.py").read_text()
    newest = releases((TOP / "CHANGELOG.md").read_text())[0]
    if f'__version__ = "{newest.version}"' not in source:
        raise SystemExit(f"CHANGELOG.md is at {newest.version}, edgeguard/__init__.py is not")
    missing = [tool for tool in ("dpkg-buildpackage", "dh", "dh_python3") if not shutil.which(tool)]
    if missing:
        raise SystemExit(f"missing: {', '.join(missing)} (apt-get install dpkg-dev debhelper dh-python)")
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or newest.date.timestamp())
    work = TOP / "build/deb"
    os.umask(0o022)
    shutil.rmtree(work, ignore_errors=True)
    tree = work / f"edgeguard-{newest.version}"
    stage(tree, epoch)
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(work),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": str(epoch),
        "DEB_BUILD_OPTIONS": "nocheck",
    }
    log = work / "build.log"
    with log.open("wb") as output:
        # -d: the tools were looked for above; it would also insist on a C compiler, and nothing here is compiled
        command = ["dpkg-buildpackage", "-us", "-uc", "-b", "-d"]
        done = subprocess.run(command, cwd=tree, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.stderr.write(log.read_text(errors="replace")[-4000:])
        return 1
    dist = TOP / "dist"
    dist.mkdir(exist_ok=True)
    made = sorted(work.glob("*.deb"))
    for package in made:
        part = dist / f".{package.name}"
        shutil.copy(package, part)
        part.rename(dist / package.name)  # who reads the one that was there goes on reading the same bytes
        print(f"dist/{package.name}  {package.stat().st_size / 1024:.0f} kB")
    for old in set(dist.glob("*.deb")) - {dist / package.name for package in made}:
        old.unlink()
    return 0


def alone() -> int:
    """main(), one at a time: several make targets want packages, and they may run side by side."""
    (TOP / "build").mkdir(exist_ok=True)
    with (TOP / "build/deb.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return main()


if __name__ == "__main__":
    sys.exit(alone())
