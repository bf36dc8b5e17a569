"""AIDE and samhain from Debian, for a comparison in the same run: unpacked, not installed, never started as a service.

Their packages and the libraries that are missing here are downloaded by apt into a folder of ours and unpacked there.
Both get the same attributes as EdgeGuard watches (permissions, owner, group, size, change and modification time,
inode, links), samhain and one of AIDE's two configurations a SHA-256 of the content.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

APT_S = 120.0  # seconds for a download
ATTRIBUTES = "p+u+g+s+m+c+i+n"
AIDE = """database_in=file:{work}/{name}.db
database_out=file:{work}/{name}.new
gzip_dbout=no
report_url=file:{work}/{name}.report
Checked = {rule}
{tree} Checked
"""
SAMHAIN = """[ReadOnly]
dir = 99{tree}
[EventSeverity]
SeverityReadOnly=crit
SeverityFiles=crit
SeverityDirs=crit
SeverityNames=warn
[Log]
PrintSeverity=none
LogSeverity=warn
MailSeverity=none
SyslogSeverity=none
[Misc]
Daemon=no
DigestAlgo=SHA256
[PortCheck]
PortCheckActive=no
[ProcessCheck]
ProcessCheckActive=no
[SuidCheck]
SuidCheckActive=no
[Mounts]
MountCheckActive=no
[Utmp]
LoginCheckActive=no
[EOF]
"""
# Its paths are compiled in, so it sees its own /etc, /var and /run; nothing outside the namespace is written.
SAMHAIN_ROOM = """set -e
mount --make-rprivate /
mount -t overlay -o lowerdir="$1/etc":/etc overlay /etc
mount -t tmpfs tmpfs /run
mount --bind "$1/var" /var
shift
exec "$@"
"""


class Peers(NamedTuple):
    """Where the unpacked programs are; "" for what is not to be had, and why."""

    aide: str
    samhain: str
    libraries: str  # for LD_LIBRARY_PATH
    versions: dict[str, str]
    why: dict[str, str]


def fetch(folder: Path) -> Peers:
    """Download and unpack what is not there yet. Each that cannot be had says why."""
    found = {"aide": "", "samhain": ""}
    why, versions = {}, {}
    for name in found:
        home = folder / name
        try:
            if not (home / "unpacked").exists():
                _unpack(name, home)
            program = next(iter(sorted((home / "root").glob(f"usr/*bin/{name}"))))
            found[name] = str(program)
            versions[name] = (home / "unpacked").read_text()
        except (OSError, StopIteration, subprocess.SubprocessError) as error:
            text = getattr(error, "stderr", None) or str(error) or "it has no program of that name"
            why[name] = text.strip().splitlines()[-1][:120]
    libraries = ":".join(str(path.parent) for path in sorted(folder.glob("*/root/**/*.so.*")))
    return Peers(found["aide"], found["samhain"], ":".join(dict.fromkeys(libraries.split(":"))), versions, why)


def _unpack(name: str, home: Path) -> None:
    debs = home / "debs"
    shutil.rmtree(home, ignore_errors=True)
    (debs / "partial").mkdir(parents=True)
    apt = ["apt-get", "-q", "-y", "-d", "--no-install-recommends", "-o", f"Dir::Cache::archives={debs}"]
    apt += ["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root", "install", name]
    subprocess.run(apt, check=True, capture_output=True, text=True, timeout=APT_S, stdin=subprocess.DEVNULL)
    for deb in debs.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(deb), str(home / "root")], check=True, capture_output=True, text=True)
    version = next(debs.glob(f"{name}_*.deb")).name.split("_")[1]
    (home / "unpacked").write_text(version)


def aide_setup(work: Path, tree: str, *, sha256: bool) -> str:
    """Write a configuration; its path."""
    name = "aide-sha256" if sha256 else "aide-plain"
    rule = ATTRIBUTES + ("+sha256" if sha256 else "")
    path = work / f"{name}.conf"
    path.write_text(AIDE.format(work=work, name=name, rule=rule, tree=tree))
    return str(path)


def samhain_setup(work: Path, tree: str) -> Path:
    """The room that samhain is to see as its own; in it nothing but its configuration."""
    room = work / "samhain"
    for folder in ("etc/samhain", "var/lib/samhain", "var/log/samhain", "var/run"):
        (room / folder).mkdir(parents=True, exist_ok=True)
    path = room / "etc/samhain/samhainrc"
    path.write_text(SAMHAIN.format(tree=tree))
    path.chmod(0o600)
    return room


def samhain_command(peers: Peers, room: Path, *words: str) -> list[str]:
    return ["unshare", "-m", "/bin/sh", "-c", SAMHAIN_ROOM, "sh", str(room), peers.samhain, *words]


def environment(peers: Peers) -> dict[str, str]:
    return {**os.environ, "LD_LIBRARY_PATH": peers.libraries}
