"""What a directory lies on, read from mount tables of devices; and the kernel's count of what was written."""

import os
import stat

import pytest

from edgeguard.linux import storage
from edgeguard.linux.storage import Medium

ROOT = "27 1 179:2 / / rw,noatime - ext4 /dev/mmcblk0p2 rw\n"


def table(tmp_path, *lines):
    (tmp_path / "self").mkdir(exist_ok=True)
    (tmp_path / "self/mountinfo").write_text("".join(lines))
    return str(tmp_path)


def test_a_card(tmp_path):
    assert storage.medium("/nowhere/at/all", table(tmp_path, ROOT)) == Medium("disk", "ext4", (179, 2))


@pytest.mark.parametrize("fstype", ["tmpfs", "ramfs"])
def test_memory(tmp_path, fstype):
    line = f"30 27 0:40 / /nowhere rw - {fstype} {fstype} rw\n"
    assert storage.medium("/nowhere/at/all", table(tmp_path, ROOT, line)) == Medium("memory", fstype, None)
    assert storage.medium("/nowhereelse", table(tmp_path, ROOT, line)).kind == "disk"


@pytest.mark.parametrize(
    ("upper", "fstype", "expected"),
    [
        ("exists", "tmpfs", Medium("memory", "overlay", None)),
        ("exists", "ext4", Medium("disk", "overlay", (8, 1))),
        ("hidden", "tmpfs", Medium("overlay", "overlay", None)),  # as overlayroot of the initramfs leaves it
        ("none", "tmpfs", Medium("overlay", "overlay", None)),
    ],
)
def test_an_overlay_is_what_its_upper_directory_is(tmp_path, upper, fstype, expected):
    place = tmp_path / "upper"
    if upper == "exists":
        place.mkdir()
    options = "rw,lowerdir=/lower" + ("" if upper == "none" else f",upperdir={place},workdir=/work")
    lines = (
        f"27 1 0:30 / / rw - overlay overlayroot {options}\n",
        f"30 27 {'8:1' if fstype == 'ext4' else '0:41'} / {place} rw - {fstype} /dev/sda1 rw\n",
    )
    assert storage.medium("/nowhere/at/all", table(tmp_path, *lines)) == expected


def test_what_cannot_be_read_is_unknown(tmp_path):
    assert storage.medium("/nowhere", str(tmp_path / "none")).kind == "unknown"
    assert storage.medium("/nowhere", table(tmp_path, "garbage\n")).kind == "unknown"
    assert storage.medium("/nowhere", table(tmp_path, "")).kind == "unknown"


def test_a_volume_that_has_no_number_of_its_own_is_found_by_its_source(tmp_path):
    line = "27 1 0:25 /@ / rw - btrfs /dev/null rw\n"
    found = storage.medium("/nowhere", table(tmp_path, line))
    number = os.stat("/dev/null").st_rdev
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert found == Medium("disk", "btrfs", (os.major(number), os.minor(number)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 2 3 4 5 6 7 8 9 10 11\n", 7 * 512),
        ("  5541787   301372 202460242 38052620  6842182  4214517 490500960  4255848 0\n", 490500960 * 512),
        ("1 2 3\n", None),
        ("a b c d e f g h\n", None),
        ("", None),
    ],
)
def test_sectors_are_of_512_bytes_whatever_the_device_has(tmp_path, text, expected):
    place = tmp_path / "dev/block/179:2"
    place.mkdir(parents=True)
    (place / "stat").write_text(text)
    assert storage.bytes_written((179, 2), str(tmp_path)) == expected
    assert storage.bytes_written((179, 3), str(tmp_path)) is None


def test_the_name_in_dev(tmp_path):
    (tmp_path / "dev/block").mkdir(parents=True)
    (tmp_path / "dev/block/179:2").symlink_to("../../devices/platform/mmc/block/mmcblk0/mmcblk0p2")
    assert storage.device_name((179, 2), str(tmp_path)) == "mmcblk0p2"
    assert storage.device_name((179, 3), str(tmp_path)) == ""


def test_this_machine_counts():
    devices = [os.stat(path).st_dev for path in ("/", "/tmp", os.path.dirname(__file__))]
    if all(os.major(number) == 0 for number in devices):
        pytest.skip("nothing here lies on a block device that the kernel names")
    number = next(number for number in devices if os.major(number))
    written = storage.bytes_written((os.major(number), os.minor(number)))
    if written is None:
        pytest.skip("no /sys here, as in a bare chroot")
    assert written
