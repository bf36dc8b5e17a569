"""The roots of test devices: Debian with systemd and what EdgeGuard depends on, made once by mmdebstrap and cached."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from tests.device.lab import command

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


def cache() -> Path:
    """Where roots and images are kept: $EDGEGUARD_CACHE, else below the user's cache directory."""
    named = os.environ.get("EDGEGUARD_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeguard"


def root_tar(suite: str) -> Path:
    """The root of one Debian release; $EDGEGUARD_ROOT_<SUITE> may name a ready one. Raises RuntimeError."""
    ready = os.environ.get(f"EDGEGUARD_ROOT_{suite.upper()}")
    if ready:
        return Path(ready)
    key = hashlib.sha256(" ".join([suite, *PACKAGES, SETUP]).encode()).hexdigest()[:12]
    tar = cache() / f"root-{suite}-{key}.tar"
    if tar.exists():
        return tar
    if not shutil.which("mmdebstrap"):
        raise RuntimeError("mmdebstrap is not installed, and no ready root is named")
    tar.parent.mkdir(parents=True, exist_ok=True)
    part = tar.with_suffix(".part.tar")
    hook = cache() / f".setup-{suite}.sh"
    hook.write_text(f"#!/bin/sh\n{SETUP}\n")
    hook.chmod(0o755)
    try:
        command(
            *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
            *("--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"),
            *("--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=force-unsafe-io"),
            *(f"--customize-hook={hook} $1", suite, part),
            timeout=1200,
        )
        part.rename(tar)
    finally:
        hook.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
    return tar


def main(suites: list[str]) -> int:
    """`python3 -m tests.device.roots SUITE...`: make them now, so that no test waits for it."""
    for suite in suites:
        print(root_tar(suite))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
