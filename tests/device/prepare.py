"""What an emulated device needs, made ahead of time: python3 -m tests.device.prepare [--name] [ARCH [SUITE]]

Makes the image (as root; six CPU minutes for arm64) and the device frozen after its first boot (half a minute), and
prints where they are. Both are kept (tests/device/cache.py), so a second call returns at once; any number may run at
the same time, and an interrupted one leaves nothing that counts. `--name` only prints the name under which the frozen
device is kept: a key for whoever keeps the cache elsewhere.
"""

from __future__ import annotations

import hashlib
import signal
import sys
import time
from pathlib import Path

from tests.device.cache import key, made
from tests.device.collector import uplink
from tests.device.emulated import BOARDS, OUTSIDE, Emulated, machine_words
from tests.device.guard import PREPARE, Guard
from tests.device.images import image, image_name
from tests.device.machine import command


def frozen_name(arch: str, suite: str) -> str:
    qemu = command(BOARDS[arch].program, "--version").splitlines()[0]
    return f"frozen-{arch}-{suite}-{key(image_name(arch, suite), qemu, *machine_words(arch))}"


def frozen(arch: str, suite: str) -> Path:
    """A device of that kind, booted once: disk.qcow2 and state.zst. Raises RuntimeError where it cannot be made."""
    base = image(arch, suite)

    def make(folder: Path) -> None:
        with Emulated(base, arch) as device:
            device.freeze(folder)
        _beside(folder, base)

    return made(frozen_name(arch, suite), make)


def guarded(arch: str, suite: str, package: Path) -> Path:
    """The frozen device with this very package installed and done with learning, frozen again.

    Its switch stands at enforce and every rule at audit, as they come: nothing is done until a rule says so. It sends
    its records to OUTSIDE.
    """
    base = frozen(arch, suite)
    settings = 'mode = "enforce"\n' + uplink(OUTSIDE)

    def make(folder: Path) -> None:
        with Emulated(image(arch, suite), arch, frozen=base) as device:
            device.write("/etc/edgeguard/agent.toml", settings)
            guard = Guard(device)
            guard.install(package)
            guard.learned()
            device.freeze(folder)
        _beside(folder, base)

    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    return made(f"guarded-{arch}-{suite}-{key(base.name, digest, PREPARE, settings)}", make)


def _beside(folder: Path, base: Path) -> None:
    """The disk names the one it builds on by where they lie to each other: the cache may be carried elsewhere."""
    rebase = ("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", f"../{base.name}/disk.qcow2")
    command(*rebase, folder / "disk.qcow2")


def main(words: list[str]) -> int:
    named = [word for word in words if word != "--name"]
    arch = named[0] if named else "arm64"
    suite = named[1] if named[1:] else "bookworm"
    if "--name" in words:
        print(frozen_name(arch, suite))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is half made is taken away
    began = time.monotonic()
    for what in (image, frozen):
        print(f"{what(arch, suite)}  ({time.monotonic() - began:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
