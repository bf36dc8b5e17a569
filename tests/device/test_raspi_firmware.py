"""Debian's own raspi-firmware on a device: what its scripts and hooks bring to the boot partition is explained, and
what somebody else changes there is told, also in the middle of it.

A container has no such partition; the hooks do not ask for one there. Debian 13's do nothing on amd64.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.device.archive import Archive
from tests.device.guard import Guard
from tests.device.lab import Device
from tests.device.upgrading import APT, apt, opened, told

pytestmark = pytest.mark.device

BOOT, KERNEL = "/boot/firmware", "6.1.0-1-arm64"
SOURCE = """sed -nE 's/^(deb (\\[[^]]*\\] )?[^ ]+ {suite}) main.*/\\1 non-free-firmware/p' /etc/apt/sources.list |
    head -n 1 >/etc/apt/sources.list.d/firmware.list; apt-get -q update"""
PREPARE = f"""mkdir -p {BOOT} /usr/lib/linux-image-{KERNEL}
echo kernel >/boot/vmlinuz-{KERNEL}; echo initrd >/boot/initrd.img-{KERNEL}
echo tree >/usr/lib/linux-image-{KERNEL}/bcm2711-rpi-4-b.dtb"""
# As if an older package had made them.
AGE = f"""cd {BOOT} && for file in start4.elf config.txt bcm2711-rpi-4-b.dtb vmlinuz-{KERNEL} initrd.img-{KERNEL}; do
echo old >$file; done; rm fixup_x.dat"""
SLIP = "/etc/dpkg/dpkg.cfg.d/slip"
SLIPPED = f"""post-invoke="case $DPKG_HOOK_ACTION in configure|install) cd {BOOT}; echo evil >>start4.elf; \
echo evil >>vmlinuz-{KERNEL}; echo evil >autoboot.txt;; esac"
"""


@pytest.fixture
def guard(image: Path, packages: dict[str, Path], suite: str) -> Iterator[Guard]:
    with Device(image, net="veth") as device, Archive(device, device.host_address):
        guard = Guard(device)
        device.run(SOURCE.format(suite=suite), timeout=300)
        device.run(PREPARE).ok()
        got = device.run(f"{APT} install raspi-firmware", timeout=300)
        if got.code:
            pytest.skip(f"the archive does not offer raspi-firmware: {got.err.strip()[-200:]}")
        if device.run(f"[ -e {BOOT}/config.txt ]").code:
            pytest.skip("raspi-firmware's scripts do nothing on this architecture")
        device.run(AGE).ok()
        guard.install(packages["edgeguard"])
        guard.learned()
        yield guard


def test_the_boot_partition_is_raspi_firmwares(guard: Guard) -> None:
    device = guard.device
    apt(guard, "install --reinstall raspi-firmware")
    assert opened(guard) == {}, told(guard)
    assert device.run(f"cmp {BOOT}/start4.elf /usr/lib/raspi-firmware/start4.elf; ! grep old {BOOT}/*.txt").code == 0

    for name in ("config.txt", "cmdline.txt", "start4.elf", "bcm2711-rpi-4-b.dtb", f"vmlinuz-{KERNEL}"):
        device.run(f"echo x >>{BOOT}/{name}").ok()
        assert guard.wait_open("EG-FILE-002", f"{BOOT}/{name}")["severity"] == "critical"
    new = (f"{BOOT}/armstub8.bin", "/etc/default/raspi-extra-cmdline", "/usr/lib/raspi-firmware/tryboot.txt")
    for path in new:
        device.write(path, "x\n")
        assert guard.wait_open("EG-FILE-001", path)["severity"] == "high"
    device.run(f"rm {' '.join(new)}").ok()
    apt(guard, "install --reinstall raspi-firmware")
    assert opened(guard) == {}, told(guard)

    device.write(SLIP, SLIPPED)
    guard.wait_open("EG-PERS-004", SLIP)
    apt(guard, "install --reinstall raspi-firmware")
    assert opened(guard).keys() == {
        ("EG-PERS-004", SLIP),
        ("EG-FILE-001", f"{BOOT}/autoboot.txt"),
        ("EG-FILE-002", f"{BOOT}/start4.elf"),
        ("EG-FILE-002", f"{BOOT}/vmlinuz-{KERNEL}"),
    }
