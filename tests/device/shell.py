"""A shell on a test device: python3 -m tests.device.shell [SUITE [ARCH]]. Leaving it takes the device away.

Without an architecture a container (a real shell, a second); with one an emulated device, a line at a time: each line
is a command of its own, `cd` and variables do not last.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

from tests.device.emulated import Emulated
from tests.device.guard import Guard
from tests.device.images import image
from tests.device.lab import Device, disk_image
from tests.device.machine import Machine
from tests.device.prepare import frozen
from tests.device.roots import root_tar

LINE_S = 3600.0  # what one line may take


def contained(suite: str) -> int:
    with Device(disk_image(root_tar(suite)), net="veth") as device:
        install(device)
        print(f"Debian {suite}, booted in {device.boot_seconds:.1f} s, address {device.address}; `exit` ends it")
        return subprocess.run(device.enter("/bin/bash", "-l"), check=False).returncode


def emulated(suite: str, arch: str) -> int:
    with Emulated(image(arch, suite), arch, frozen=frozen(arch, suite)) as device:
        print(f"Debian {suite} on {arch}, up in {device.boot_seconds:.1f} s; installing", flush=True)
        install(device)
        print("Each line is a command of its own; `exit` or Ctrl-D ends it", flush=True)
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            while (line := input("# ").strip()) != "exit":
                result = device.run(line, timeout=LINE_S)
                print(result.out + result.err, end="", flush=True)
                if result.code:
                    print(f"[{result.code}]", flush=True)
    return 0


def install(device: Machine) -> None:
    packages = sorted((Path(__file__).resolve().parents[2] / "dist").glob("edgeguard_*.deb"))
    if packages:
        Guard(device).install(*packages)


def main(words: list[str]) -> int:
    suite = words[0] if words else "bookworm"
    return emulated(suite, words[1]) if words[1:] else contained(suite)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
