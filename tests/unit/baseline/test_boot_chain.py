"""The boot chain of a Raspberry Pi and its like: each part is watched as what it is; what writes itself is left out."""

import os

import pytest

from edgeguard.baseline import policy, store
from edgeguard.sensors.deciding import decision
from edgeguard.sensors.watching import Plan
from edgeguard.upgrades.kinds import CACHES

HOUSE = os.path.join(os.path.dirname(__file__), "..", "..", "..")
PI = [
    "bootcode.bin",
    "start4.elf",
    "fixup4.dat",
    "kernel8.img",
    "kernel_2712.img",
    "initramfs8",
    "bcm2712-rpi-5-b.dtb",
    "overlays/vc4-kms-v3d.dtbo",
    "config.txt",
    "cmdline.txt",
    "autoboot.txt",
    "tryboot.txt",
    "issue.txt",
    "LICENCE.broadcom",
    "user-data",
    "meta-data",
    "network-config",
    "pieeprom.upd",
    "recovery.bin",
]
BOOT = [
    *(f"/boot/firmware/{name}" for name in PI),
    *(f"/boot/{name}" for name in PI),  # up to Debian 11 the firmware's partition lies here
    "/boot/vmlinuz-6.12.0-1-arm64",
    "/boot/initrd.img-6.12.0-1-arm64",
    "/boot/boot.scr",
    "/boot/extlinux/extlinux.conf",
    "/boot/dtbs/6.12.0-1-arm64/broadcom/bcm2711-rpi-4-b.dtb",
    "/boot/grub/grub.cfg",
    "/boot/efi/EFI/debian/grubaa64.efi",
    "/boot/efi/EFI/BOOT/BOOTAA64.EFI",
    "/boot/efi/loader/loader.conf",
    "/boot/efi/loader/entries/debian.conf",
    "/boot/loader/entries/debian.conf",
    "/boot/0123456789abcdef0123456789abcdef/6.12.0/linux",
    "/usr/lib/firmware/raspberrypi/bootloader-2712/default/pieeprom-2025-05-08.bin",
    # what is copied to the boot partition, and by which settings
    "/usr/lib/raspi-firmware/start4.elf",
    "/usr/lib/raspi-firmware/overlays/README.md",
    "/usr/lib/linux-image-6.12.0-1-arm64/broadcom/bcm2711-rpi-4-b.dtb",
    "/usr/lib/linux-image-6.12.47+rpt-rpi-v8/overlays/vc4-kms-v3d.dtbo",
    "/etc/default/raspi-firmware",
    "/etc/default/raspi-firmware-custom",
    "/etc/default/raspi-extra-cmdline",
]
BY_ITSELF = [
    "/boot/grub/grubenv",
    "/boot/efi/loader/random-seed",
    "/boot/loader/random-seed",
    "/boot/firmware/FSCK0000.REC",
    "/boot/FSCK0001.REC",
    "/boot/firmware/System Volume Information/WPSettings.dat",
    "/boot/efi/loader/entries/debian+2-1.conf",
    "/etc/fake-hwclock.data",
    "/etc/resolv.conf",
    "/etc/adjtime",
]
VOLATILE = ["/boot/uboot.env", "/boot/firmware/uboot.env", "/boot/efi/EFI/BOOT/grubenv"]
BY_PEOPLE = {  # raspi-config, the first start, NetworkManager: seldom, and worth a word
    "/etc/wpa_supplicant/wpa_supplicant.conf": "config",
    "/etc/NetworkManager/system-connections/home.nmconnection": "config",
    "/etc/netplan/90-NM-x.yaml": "config",
    "/etc/dphys-swapfile": "config",
    "/etc/rpi/swap.conf": "config",
    "/etc/cloud/cloud.cfg": "config",
    "/etc/default/rpi-eeprom-update": "config",
    "/etc/ssh/sshd_config.d/rename_user.conf": "config",
    "/etc/systemd/system/getty@tty1.service.d/autologin.conf": "unit",
    "/etc/xdg/autostart/piwiz.desktop": "script",
    "/etc/rc.local": "script",
    "/etc/kernel/postinst.d/z50-raspi-firmware": "script",
    "/etc/initramfs/post-update.d/z50-raspi-firmware": "script",
}
ELSEWHERE = ["/var/lib/systemd/rfkill/platform-soc:bluetooth", "/var/lib/NetworkManager/timestamps", "/var/swap"]


@pytest.fixture(scope="module")
def plan():
    return Plan(policy.parse(store.read_policy_dirs(os.path.join(HOUSE, "packaging", "policy.d"), "")).watches)


@pytest.mark.parametrize("path", BOOT)
def test_the_chain_is_read(plan, path):
    watch = plan.decide(path)
    assert watch is not None
    assert (watch.category, watch.content, watch.only) == ("boot", True, "")


@pytest.mark.parametrize("path", BY_ITSELF)
def test_what_writes_itself_is_left_out_by_name(plan, path):
    assert decision(plan, path).glob


@pytest.mark.parametrize("path", VOLATILE)
def test_the_boot_loader_s_own_memory(plan, path):
    watch = plan.decide(path)
    assert (watch.category, watch.content) == ("volatile", False)


@pytest.mark.parametrize(("path", "category"), BY_PEOPLE.items())
def test_what_people_change_is_told(plan, path, category):
    assert plan.decide(path).category == category


@pytest.mark.parametrize("path", ELSEWHERE)
def test_state_is_not_watched(plan, path):
    assert plan.decide(path).only == "setid"


@pytest.mark.parametrize(
    "path",
    [
        "/boot/firmware/kernel8.img",
        "/boot/firmware/cmdline.txt",  # Debian's raspi-firmware writes it anew with each kernel
        "/boot/firmware/overlays/vc4-kms-v3d.dtbo",
        "/boot/firmware/overlays",
        "/boot/firmware/overlays/.vc4-kms-v3d.dtbo.Ab3xYz",
        "/boot/firmware/.bcm2711-rpi-4-b.dtb.Ab3xYz",
        "/boot/firmware/config.txt",
        "/boot/firmware/bootcode.bin",
        "/boot/firmware/start4cd.elf",
        "/boot/firmware/fixup_x.dat",
        "/boot/firmware/LICENCE.broadcom",
        "/boot/firmware/bcm2711-rpi-4-b.dtb",
        "/boot/firmware/vmlinuz-6.12.0-1-arm64",
        "/boot/firmware/initrd.img-6.12.0-1-arm64",
        "/boot/firmware/kernel_2712.img",
        "/boot/firmware/initramfs_2712",
        "/boot/initrd.img-6.12.0-1-arm64",
        "/boot/initramfs8",
        "/boot/boot.scr",
        "/boot/extlinux/extlinux.conf",
        "/boot/grub/grub.cfg",
        "/boot/efi/EFI/debian/grubaa64.efi",
        "/boot/loader/entries/debian.conf",
        "/boot/0123456789abcdef0123456789abcdef/6.12.0/initrd.img-6.12.0",
        "/boot/EFI/systemd/systemd-bootaa64.efi",
    ],
)
def test_what_packages_make_there_is_explained(path):
    assert CACHES.fullmatch(path.encode())


@pytest.mark.parametrize(
    "path",
    [
        *("/boot/config.txt", "/boot/autoboot.txt", "/boot/vmlinuz-6.12.0-1-arm64", "/boot/x"),
        *(f"/boot/firmware/{name}" for name in ("autoboot.txt", "tryboot.txt", "ssh", "userconf.txt", "firstrun.sh")),
        *(f"/boot/firmware/{name}" for name in ("user-data", "armstub8.bin", "dt-blob.bin", "boot.img", "EFI/x.efi")),
    ],
)
def test_what_no_package_makes_there_is_not(path):
    assert not CACHES.fullmatch(path.encode())
