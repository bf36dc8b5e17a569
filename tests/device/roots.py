"""The roots of test devices: Debian with systemd and what EdgeGuard depends on, made by mmdebstrap and cached."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.device.cache import key, made, week
from tests.device.machine import command

# fmt: off
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "udev", "kmod", "iproute2", "nftables", "procps", "e2fsprogs", "apt", "sudo",
    "cron", "openssh-server", "netcat-openbsd", "python3", "python3-psutil", "python3-cbor2", "python3-pyudev",
    "python3-systemd", "python3-cryptography", "python3-aiohttp", "openssl",
)
# fmt: on
# Nothing runs on its own during a test; the journal is kept, as on a device.
SETUP = """set -eu; cd "$1"
echo edgedev >etc/hostname; echo '127.0.0.1 localhost edgedev' >etc/hosts; : >etc/machine-id
mkdir -p var/log/journal etc/systemd/journald.conf.d
printf '[Journal]\\nSystemMaxUse=32M\\nRateLimitIntervalSec=0\\n' >etc/systemd/journald.conf.d/lab.conf
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service; do
    ln -sf /dev/null "etc/systemd/system/$unit"
done"""
BINFMT = {"arm64": "qemu-aarch64", "armhf": "qemu-arm"}  # who runs that architecture's programs here
PR_SET_PDEATHSIG = 1  # linux/prctl.h
MAKE_S = 3600  # a root for a foreign architecture takes about six minutes alone on two cores
TRIES = 3


def root_tar(suite: str) -> Path:
    """The root of one Debian release for nspawn; $EDGEGUARD_ROOT_<SUITE> may name a ready one. Raises RuntimeError."""
    ready = os.environ.get(f"EDGEGUARD_ROOT_{suite.upper()}")
    if ready:
        return Path(ready)
    name = f"root-{suite}-{key('amd64', suite, *PACKAGES, SETUP, week())}.tar"
    return made(name, lambda part: debian("amd64", suite, PACKAGES, [SETUP], part))


def debian(arch: str, suite: str, packages: Sequence[str], hooks: Sequence[str], tar: Path) -> None:
    """Make the root in `tar`; each hook is a shell script, run on the host with the root as $1. Raises RuntimeError."""
    if not shutil.which("mmdebstrap"):
        raise RuntimeError("mmdebstrap is not installed, and no ready root is named")
    if os.geteuid():
        raise RuntimeError("making a root needs root")
    if arch != command("dpkg", "--print-architecture").strip():
        _understand(arch)
    words = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--architectures={arch}"]
    words += [f"--include={','.join(packages)}", "--dpkgopt=path-exclude=/usr/share/doc/*"]
    words += ["--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"]
    words += ["--dpkgopt=force-unsafe-io"]
    for number, script in enumerate(hooks):
        hook = tar.parent / f"hook{number}.sh"
        hook.write_text(f"#!/bin/bash\n{script}\n")
        hook.chmod(0o755)
        words.append(f"--customize-hook={hook} $1")
    # A mirror that is rewriting its security index fails: try again, then do without rather than not at all.
    for left in reversed(range(TRIES)):
        try:
            _run([*words, suite, str(tar), *([] if left else plain_mirror())], tar.parent)
            return
        except RuntimeError:
            tar.unlink(missing_ok=True)
            if not left:
                raise
            time.sleep(5)


def plain_mirror() -> list[str]:
    """The mirror of Debian that this host's apt uses, without updates and security."""
    found = command("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian")
    return found.split()[:1]


def _understand(arch: str) -> None:
    """Have the kernel run programs of that architecture by qemu-user."""
    tables = Path("/proc/sys/fs/binfmt_misc")
    if not (tables / "register").exists():
        command("mount", "-t", "binfmt_misc", "binfmt_misc", tables)
    if not (tables / BINFMT[arch]).exists():
        command("update-binfmts", "--enable", BINFMT[arch])


def _run(words: Sequence[str], folder: Path) -> None:
    """Like command(), and whoever interrupts us ends the whole group of processes."""
    environment = {**os.environ, "TMPDIR": str(folder)}
    with (folder / "log").open("ab+") as log:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - no thread ever runs here
        )
        try:
            code = process.wait(MAKE_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)  # mmdebstrap takes its mounts away
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            raise
    if code:
        raise RuntimeError(f"{words[0]}: {(folder / 'log').read_text(errors='replace')[-2000:]}")


def _end_with_parent() -> None:
    """Also when the parent is killed: mmdebstrap takes its mounts away when it is asked to end."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main(suites: list[str]) -> int:
    """`python3 -m tests.device.roots SUITE...`: make them now, so that no test waits for it."""
    for suite in suites:
        print(root_tar(suite))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
