"""A shell on a test device: python3 -m tests.device.shell [bookworm|trixie]. Leaving it takes the device away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.device.guard import Guard
from tests.device.lab import Device, disk_image
from tests.device.roots import cache, root_tar


def main(arguments: list[str]) -> int:
    suite = arguments[0] if arguments else "bookworm"
    with Device(disk_image(root_tar(suite), cache()), net="veth") as device:
        packages = sorted((Path(__file__).resolve().parents[2] / "dist").glob("edgeguard_*.deb"))
        if packages:
            Guard(device).install(*packages)
        print(f"Debian {suite}, booted in {device.boot_seconds:.1f} s, address {device.address}; `exit` ends it")
        return subprocess.run(device.enter("/bin/bash", "-l"), check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
