"""Where the originals lie of what hooks of packages copy to the boot partition of a Raspberry Pi. Pure.

/usr/lib/raspi-firmware/          firmware and, Debian 13, overlays: copied when raspi-firmware is installed
/usr/lib/linux-image-VERSION/     device trees (arm64: in broadcom/), Raspberry Pi OS: overlays too
/boot/vmlinuz-VERSION             Debian: under this name; Raspberry Pi OS: as kernel8.img, kernel_2712.img, ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

FIRMWARE = b"/usr/lib/raspi-firmware"
HOOKS = (b"/etc/kernel/postinst.d", b"/etc/kernel/postrm.d", b"/etc/initramfs/post-update.d")
"""Directories of what kernels and update-initramfs run, and what writes to the boot partition."""


def originals(path: bytes, names: Callable[[bytes], list[bytes]]) -> Iterator[bytes]:
    """Where the original of such a copy may lie. `names`: what is in a directory."""
    folder, _, name = path.removeprefix(b"/boot/firmware/").rpartition(b"/")
    if name.startswith((b"kernel", b"vmlinuz")):
        yield from (b"/boot/" + one for one in names(b"/boot") if one.startswith(b"vmlinuz"))
        return
    below = folder + b"/" + name if folder else name
    yield FIRMWARE + b"/" + below
    for image in names(b"/usr/lib"):
        if image.startswith(b"linux-image-"):
            yield b"/usr/lib/" + image + b"/" + below
            if not folder:
                yield b"/usr/lib/" + image + b"/broadcom/" + name
