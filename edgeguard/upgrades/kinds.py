"""Which paths may be made of what packages bring, told by their names alone; light enough for the resident daemon.

Whether a file at such a path really is what it should be is found out in `derived`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

BY_OTHERS, BY_DPKG, BY_UNKNOWN = 0, 1, 2
"""Who made a file: somebody else, dpkg or a child of it, or the kernel did not say."""

PYC = re.compile(
    rb"(?P<folder>/.*)/__pycache__/(?P<stem>[^/]+)\.cpython-3(?P<minor>\d{1,3})(?:\.opt-(?P<opt>[12]))?\.pyc"
)
ALTERNATIVE = re.compile(rb"/etc/alternatives/[^/]+")
ENABLED = re.compile(rb"/etc/systemd/(?:system|user)/(?:[^/]+\.(?:wants|requires|upholds)/)?[^/]+")
UNITS = re.compile(rb"(?:/usr)?/lib/systemd/(?:system|user)/[^/]+")
RUNLEVEL = re.compile(rb"/etc/rc[0-6S]\.d/[SK]\d\d(?P<name>[^/]+)")
CERTIFICATE = re.compile(rb"/etc/ssl/certs/[^/]+")
LOCAL = re.compile(rb"(?P<folder>/etc/apparmor\.d/)local/(?P<name>[^/]+)")
PAM = re.compile(rb"/etc/pam\.d/common-[a-z-]+")
# The boot partition of a Raspberry Pi. Hooks of kernels and of raspi-firmware copy there what lies elsewhere,
BOOT_COPY = (
    rb"/boot/firmware/(?:bootcode\.bin|start[^/]*\.elf|fixup[^/]*\.dat|[^/]+\.dtb|kernel[^/]*\.img|vmlinuz[^/]*"
    rb"|LICENCE[^/]*|COPYING[^/]*|overlays/[^/]+)"
)
# and Debian's write these two anew. What else the firmware takes by its name (autoboot.txt, armstub8.bin), and by what
# the system sets itself up at its first start, no package makes.
BOOT_TEXT = rb"/boot/firmware/(?:config|cmdline)\.txt"
# Made anew as a whole by the tool in the comment; their content follows from too much to be checked.
CACHES = re.compile(
    rb"|".join(
        (
            rb"/boot/(?:initrd\.img|initramfs)[^/]*",  # update-initramfs
            rb"/boot/(?:boot\.scr|uInitrd|uImage)[^/]*",  # flash-kernel, for u-boot
            rb"/boot/dtbs?(?:[-.][^/]*|/.+)?",  # the same
            rb"/boot/extlinux/extlinux\.conf",  # u-boot-menu
            rb"/boot/(?:efi/)?loader/entries/[^/]+\.conf",  # kernel-install
            rb"/boot/[0-9a-f]{32}/.+",  # the same, where it lays kernels by machine
            rb"/boot/EFI/(?:BOOT|systemd|Linux)/[^/]+\.(?:efi|EFI)",  # bootctl, where the EFI partition is /boot
            rb"/usr/lib/modules/[^/]+/updates/dkms/[^/]+\.ko(?:\.xz|\.gz|\.zst)?",  # dkms
            rb"/boot/grub/.*",  # update-grub, grub-install
            rb"/boot/efi/.*",  # grub-install, bootctl, fwupd
            BOOT_COPY,
            BOOT_TEXT,
            rb"/boot/firmware/(?:overlays|initramfs[^/]*|initrd\.img[^/]*|boot\.scr)",  # raspi-firmware's hooks
            rb"/boot/firmware/\.[^/]+\.[A-Za-z0-9]{6}",  # what rsync, by which they copy, works with
            rb"/usr/lib/modules/[^/]+/modules\.[a-z.]+",  # depmod
            rb"/usr/lib/udev/hwdb\.bin",  # systemd-hwdb
            rb"/usr/lib/locale/(?:locale-archive|[^/]+(?:/.*)?)",  # localedef
            rb"/usr/share/glib-2\.0/schemas/gschemas\.compiled",  # glib-compile-schemas
            rb"/usr/lib/(?:[^/]+/)?gio/modules/giomodule\.cache",  # gio-querymodules
            rb"/usr/lib/(?:[^/]+/)?gdk-pixbuf-2\.0/[^/]+/loaders\.cache",  # gdk-pixbuf-query-loaders
            rb"/usr/lib/(?:[^/]+/)?gtk-[^/]+/[^/]+/immodules\.cache",  # gtk-query-immodules
            rb"/usr/lib/(?:[^/]+/)?gconv/gconv-modules\.cache",  # iconvconfig
            rb"/usr/share/applications/mimeinfo\.cache",  # update-desktop-database
            rb"/usr/share/(?:[^/]+/)*icon-theme\.cache",  # gtk-update-icon-cache
            rb"/usr/share/info/dir(?:\.old)?",  # install-info
            rb"/etc/shells",  # add-shell
            rb"/etc/mailcap",  # update-mime
            rb"/etc/apparmor\.d/(?:local|tunables)/.+",  # dh_apparmor: empty places for local rules
            rb"/etc/ca-certificates\.conf(?:\.dpkg-old)?",  # ca-certificates' own postinst
            rb"/etc/(?:passwd|group|shadow|gshadow|subuid|subgid)-?",  # only who may read them is a subject here
        )
    )
)


ACCOUNT_COLUMNS = ("uid", "gid", "home", "shell", "password", "members")
"""What of an account is a reference value."""


def quiet_account(subject: str, columns: Mapping[str, object]) -> bool:
    """An account of the system with which nobody can log in and that gives nobody more rights: only such ones wait for
    an explanation. A second line of a name, and a group that already has members, are none."""
    number = columns.get("uid" if subject.startswith("user ") else "gid")
    more = ("privileged", "reaching", "nis", "members", "admins")
    return (
        "#" not in subject
        and columns.get("system") is True
        and isinstance(number, int)
        and number > 0
        and columns.get("password") == "locked"
        and not any(columns.get(name) for name in more)
    )


def may_be(path: bytes, target: bytes, category: str, maker: int) -> bool:
    """Could this path be made of what a package brings? Asked while a transaction runs, of paths that it does not
    expect. `target`: where a link leads."""
    if any(pattern.fullmatch(path) for pattern in _CHECKED):
        return True  # by its content, whoever made it
    if maker == BY_OTHERS:
        return False
    if any(pattern.fullmatch(path) for pattern in _MADE) or ALTERNATIVE.fullmatch(target):
        return True
    if not path.startswith(b"/etc/"):
        return False
    return maker == BY_DPKG or category in (
        "config",
        "script",
    )  # a copy of a package's file, or what its scripts make there


_CHECKED = (PYC, CERTIFICATE)
_MADE = (ALTERNATIVE, ENABLED, RUNLEVEL, CACHES)
