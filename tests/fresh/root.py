"""A Debian root that holds nothing but the base system, git and make: what a newcomer's machine looks like.

Made once by mmdebstrap and kept in the cache for a week. `Fresh` unpacks it and runs commands in namespaces of their
own, so that whatever a command starts ends with it; the network is the machine's, because packages come from there.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from tests.device.cache import cache, key, made, week
from tests.device.machine import command
from tests.device.roots import debian

TOP = Path(__file__).resolve().parents[2]
PACKAGES = ("git", "make", "ca-certificates", "sudo")  # sudo: asked for by the runs as a user
USER = "joe"
HOME = f"/home/{USER}"
SETUP = f"""set -eu
chroot "$1" useradd --create-home --shell /bin/sh {USER}
echo '{USER} ALL=(ALL) NOPASSWD: ALL' >"$1/etc/sudoers.d/{USER}"
"""


def fresh_tar(suite: str) -> Path:
    """The root of one Debian release. Raises RuntimeError."""
    arch = command("dpkg", "--print-architecture").strip()
    name = f"fresh-{suite}-{key(arch, suite, *PACKAGES, SETUP, week())}.tar"
    return made(name, lambda part: debian(arch, suite, PACKAGES, [SETUP], part))


class Fresh:
    """One such root with a clone of this project in the home of `user`. Leaving takes it away."""

    def __init__(self, suite: str, user: str) -> None:
        self.user = user
        self.home = HOME if user == USER else f"/{user}"
        self._folder = Path(tempfile.mkdtemp(prefix="fresh-", dir=cache()))
        self.root = self._folder / "root"
        self._suite = suite

    def __enter__(self) -> Self:
        try:
            self.root.mkdir()
            words = ("--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", fresh_tar(self._suite))
            command("tar", "-C", self.root, *words, timeout=600)
            self.root.chmod(0o755)
            for name in ("resolv.conf", "hosts"):
                shutil.copy(f"/etc/{name}", self.root / "etc" / name)
            self._clone()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_why: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)  # nothing is mounted in it: mounts ended with their namespace

    def _clone(self) -> None:
        """What is committed, as `git clone` gives it."""
        there = self.root / self.home.lstrip("/") / "edgeguard"
        command("git", "-c", "safe.directory=*", "clone", "-q", "--no-hardlinks", TOP, there)
        owner = there.parent.stat()
        command("chown", "-R", f"{owner.st_uid}:{owner.st_gid}", there)

    def begin(self, script: str) -> subprocess.Popen[str]:
        """A shell script in the clone, as the user. All that it starts ends with it, or when this process does."""
        mounts = "mount -t proc proc proc && mount --rbind /dev dev && mount -t tmpfs tmpfs run"
        login = f"exec runuser -l {self.user} -c 'cd edgeguard && exec sh -c \"$SCRIPT\"' -w SCRIPT"
        inner = f"cd {self.root} && {mounts} && exec chroot . /bin/sh -c {_quoted(login)}"
        return subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", inner],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "SCRIPT": script},
        )

    def run(self, script: str, *, timeout: float) -> tuple[int, str]:
        """(exit code, all that was said); code 124 when it did not end in time."""
        process = self.begin(script)
        try:
            out, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, _ = process.communicate()
            return 124, out
        return process.returncode, out


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
