"""What an emulated device boots from: a disk image, Debian's kernel, and a small initrd of our own; made once, cached.

The initrd (busybox, the modules that reach the disk, a short init) stands in for Debian's, whose making under emulation
costs minutes and whose boot costs seconds. From the moment when systemd starts everything is Debian's own.
"""

from __future__ import annotations

import gzip
import json
import lzma
import stat
from collections.abc import Iterator
from pathlib import Path

from tests.device.cache import key, made, week
from tests.device.machine import command
from tests.device.roots import PACKAGES, SETUP, debian

DISK_BYTES = "2G"  # sparse
MORE = ("qemu-guest-agent", "busybox-static")
KERNEL = Path(__file__).with_name("kernel.sh")
# What a device with a cable and a disk of its own has beyond a container's root.
MACHINE_SETUP = """set -eu; cd "$1"
chroot . passwd -qd root
printf '[Match]\\nName=en* eth*\\n[Network]\\nDHCP=ipv4\\n' >etc/systemd/network/80-lab.network
printf '/dev/root / ext4 rw,relatime 0 1\\n' >etc/fstab
chroot . systemctl -q enable systemd-networkd"""
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin; export PATH=/bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
while read -r module; do insmod /lib/$module; done </lib/order
root=$(sed -n 's/.*\\broot=\\([^ ]*\\).*/\\1/p' /proc/cmdline); root=${root:-/dev/vda}
tries=0; while [ ! -b "$root" ] && [ $tries -lt 300 ]; do usleep 100000; tries=$((tries+1)); done
mount -t ext4 -o rw "$root" /mnt || exec sh
for folder in dev proc sys; do mount --move /$folder /mnt/$folder; done
exec switch_root /mnt /sbin/init
"""


def image_name(arch: str, suite: str) -> str:
    recipe = [*PACKAGES, *MORE, SETUP, MACHINE_SETUP, KERNEL.read_text(), INIT, DISK_BYTES]
    return f"image-{arch}-{suite}-{key(arch, suite, *recipe, week())}"


def image(arch: str, suite: str) -> Path:
    """A folder with disk.qcow2, vmlinuz, initrd.img, manifest.json. Raises RuntimeError where it cannot be made."""
    return made(image_name(arch, suite), lambda part: _make(arch, suite, part))


def _make(arch: str, suite: str, folder: Path) -> None:
    work = folder.parent
    tar, tree, raw = work / "root.tar", work / "root", work / "disk.raw"
    debian(arch, suite, [*PACKAGES, *MORE], [SETUP, MACHINE_SETUP, KERNEL.read_text()], tar)
    tree.mkdir()
    command("tar", "-C", tree, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", tar, timeout=600)
    tree.chmod(0o755)
    folder.mkdir()
    (folder / "vmlinuz").write_bytes(_kernel((work / "vmlinuz").read_bytes()))
    modules = (work / "initrd-modules").read_text().split()
    (folder / "initrd.img").write_bytes(gzip.compress(initrd(tree, modules), 1))
    command("truncate", "-s", DISK_BYTES, raw)
    command("mkfs.ext4", "-q", "-F", "-L", "edgedev", "-E", "lazy_itable_init=0", "-d", tree, raw, timeout=600)
    squeeze = ("qemu-img", "convert", "-O", "qcow2", "-c", "-o", "compression_type=zstd")
    command(*squeeze, raw, folder / "disk.qcow2", timeout=600)
    listed = command("dpkg-query", f"--admindir={tree}/var/lib/dpkg", "-W", "-f", "${Package} ${Version}\\n")
    manifest = {"arch": arch, "suite": suite, "packages": dict(line.split() for line in listed.splitlines())}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _kernel(data: bytes) -> bytes:
    """A kernel as QEMU takes it: arm64's is gzip'ed."""
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def initrd(tree: Path, modules: list[str]) -> bytes:
    """A cpio archive ("newc") from busybox, modules of the root and INIT."""
    files: dict[str, bytes] = {"init": INIT.encode(), "bin/busybox": (tree / "usr/bin/busybox").read_bytes()}
    order = []
    for module in modules:
        data = (tree / module.lstrip("/")).read_bytes()
        name = Path(module).name
        if name.endswith(".xz"):
            name, data = name.removesuffix(".xz"), lzma.decompress(data)
        files[f"lib/{name}"] = data
        order.append(name)
    files["lib/order"] = "".join(f"{name}\n" for name in order).encode()
    return b"".join(_cpio(files))


def _cpio(files: dict[str, bytes]) -> Iterator[bytes]:
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in ("bin", "dev", "lib", "mnt", "proc", "sys")]
    entries += [(name, stat.S_IFREG | 0o755, data) for name, data in files.items()]
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        # inode, mode, uid, gid, links, time, size, device and raw device (two numbers each), length of the name, check
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        yield b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        yield b"\0" * (-(110 + len(name) + 1) % 4) + data + b"\0" * (-len(data) % 4)
