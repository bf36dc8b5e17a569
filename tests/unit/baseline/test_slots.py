"""Which baseline may be in force on a device with two slots: that of the image that runs; one step back, no further."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeguard.baseline import slots as slotting
from edgeguard.baseline.document import Baseline, compile_baseline, open_signed, sign
from edgeguard.baseline.image import Image, for_image, image_of, lies_in, name_in
from edgeguard.baseline.policy import Policy, PolicySettings
from edgeguard.baseline.slots import Slot
from edgeguard.baseline.store import Store
from edgeguard.codec import cose
from edgeguard.errors import BadSignature, Corrupt, OlderRevision

SEED = bytes(range(32))
PUBLIC = cose.public_of(SEED)
DEVICE = cose.device_id(PUBLIC)
NOW = 1_790_000_000_000
DAY = 86_400_000


class Device:
    """Two slots and a data partition; `boot` exchanges the root."""

    def __init__(self, base: Path) -> None:
        self.root = base / "root"
        (self.root / "usr/lib").mkdir(parents=True)
        self.store = Store(str(base / "state"), str(self.root))
        self.boot("A")

    def boot(self, image: str) -> None:
        (self.root / "usr/lib/os-release").write_text(release(image))

    def baseline(self, image: str, revision: int, seed: bytes = SEED, expires_after: int | None = None) -> bytes:
        policy = Policy(settings=PolicySettings(expires_after))
        made = compile_baseline(policy, {}, None, revision, NOW)
        if image:
            made = for_image(made, of(image))
        return sign(made, seed)

    def install(self, image: str, revision: int) -> bool:
        """Does it wait?"""
        data = self.baseline(image, revision)
        baseline = open_signed(data, [PUBLIC], DEVICE, self.store.floor(), NOW)
        self.store.install(data, baseline, "boot")
        return not self.store.fits(baseline)

    def in_force(self, now: int = NOW) -> tuple[str, int] | None:
        baseline = self.store.load_verified([PUBLIC], DEVICE, now).baseline
        return told(baseline)

    def refused(self, now: int = NOW) -> set[str]:
        return {type(item.error).__name__ for item in self.store.load_verified([PUBLIC], DEVICE, now).refused}


def told(baseline: Baseline | None) -> tuple[str, int] | None:
    if baseline is None:
        return None
    image = image_of(baseline)
    return (image.name if image is not None else "", baseline.revision)


def release(image: str) -> str:
    return f"ID=debian\nIMAGE_ID=pump\nIMAGE_VERSION={image}\n"


def of(image: str) -> Image:
    from hashlib import sha256

    return Image(f"pump {image}", sha256(release(image).encode()).digest())


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_an_update_waits_until_its_image_runs(device: Device) -> None:
    assert not device.install("A", 8)
    assert device.install("B", 9)
    assert (device.in_force(), device.store.floor()) == (("pump A", 8), 8)
    device.boot("B")
    assert (device.in_force(), device.store.floor()) == (("pump B", 9), 9)


def test_falling_back_returns_to_the_old_baseline_and_forward_again(device: Device) -> None:
    device.install("A", 8)
    device.install("B", 9)
    device.boot("B")
    device.in_force()
    device.boot("A")
    assert (device.in_force(), device.store.floor()) == (("pump A", 8), 9)
    device.boot("B")
    assert device.in_force() == ("pump B", 9)


def test_no_older_image_comes_back(device: Device) -> None:
    for image, revision in (("A", 8), ("B", 9), ("C", 10)):
        device.install(image, revision)
        device.boot(image)
        assert device.in_force() == (f"pump {image}", revision)
    device.boot("A")
    assert device.in_force() == ("pump C", 10)  # it judges what runs, and all of that differs
    device.boot("B")
    assert device.in_force() == ("pump B", 9)


def test_an_image_has_a_floor_of_its_own(device: Device) -> None:
    """The policy of A was renewed while it ran: the older one for it never comes back."""
    device.install("A", 7)
    device.install("A", 8)
    device.install("B", 9)
    device.boot("B")
    device.in_force()
    device.boot("A")
    assert device.in_force() == ("pump A", 8)
    os.unlink(device.store.path_of(8))
    assert device.in_force() == ("pump B", 9)


def test_an_update_that_was_never_booted_makes_room(device: Device) -> None:
    device.install("A", 8)
    device.install("B", 9)
    assert device.install("C", 10)
    assert not os.path.exists(device.store.path_of(9))
    device.boot("B")
    assert device.in_force() == ("pump A", 8)
    device.boot("C")
    assert device.in_force() == ("pump C", 10)
    device.boot("A")
    assert device.in_force() == ("pump A", 8)


def test_what_waits_is_not_replaced_by_an_older_one(device: Device) -> None:
    device.install("A", 8)
    device.install("C", 10)
    with pytest.raises(OlderRevision, match="waits already"):
        device.install("B", 9)


def test_the_policy_of_the_running_image_may_be_renewed_while_another_waits(device: Device) -> None:
    device.install("A", 8)
    device.install("B", 9)
    device.install("A", 10)
    assert device.in_force() == ("pump A", 10)
    device.boot("B")
    assert device.in_force() == ("pump B", 9)
    device.boot("A")
    assert device.in_force() == ("pump A", 10)


def test_the_one_to_fall_back_to_is_never_tidied_away(device: Device) -> None:
    device.install("A", 8)
    device.install("B", 9)
    device.boot("B")
    for revision in range(10, 40):
        device.install("B", revision)
    assert device.in_force() == ("pump B", 39)
    device.boot("A")
    assert device.in_force() == ("pump A", 8)


def test_an_old_baseline_that_ended_does_not_come_back(device: Device) -> None:
    data = device.baseline("A", 8, expires_after=DAY)
    device.store.install(data, open_signed(data, [PUBLIC], DEVICE, 0, NOW), "boot")
    device.install("B", 9)
    device.boot("B")
    device.in_force()
    device.boot("A")
    assert device.in_force(NOW + 2 * DAY) == ("pump B", 9)
    assert device.refused(NOW + 2 * DAY) == {"Expired"}


def test_a_clock_that_is_behind_at_the_start_does_not_judge_the_new_image_by_the_old_measure(device: Device) -> None:
    device.install("A", 8)
    device.install("B", 9)
    device.boot("B")
    assert device.in_force(now=0) == ("pump B", 9)
    device.boot("A")
    assert device.in_force(now=0) == ("pump A", 8)
    with open(device.store.path_of(11), "wb") as file:  # dropped in, never accepted here
        file.write(device.baseline("A", 11))
    assert device.refused(now=0) == {"NotYetValid"}
    assert device.in_force(now=0) == ("pump A", 8)


def test_a_forged_file_in_the_old_slot_is_refused(device: Device) -> None:
    device.install("A", 8)
    device.install("B", 9)
    device.boot("B")
    device.in_force()
    device.boot("A")
    with open(device.store.path_of(8), "wb") as file:
        file.write(device.baseline("A", 8, seed=bytes(32)))
    assert (device.in_force(), device.refused()) == (("pump B", 9), {"BadSignature"})
    with open(device.store.path_of(8), "wb") as file:  # signed, and for another image or revision than is noted
        file.write(device.baseline("A", 7))
    assert device.in_force() == ("pump B", 9)
    with open(device.store.path_of(8), "wb") as file:
        file.write(device.baseline("", 8))
    assert device.in_force() == ("pump B", 9)


def test_handing_the_same_over_again_is_no_downgrade_and_no_error(device: Device) -> None:
    device.install("A", 8)
    device.install("B", 9)
    device.boot("B")
    device.in_force()
    data = device.baseline("A", 8)
    baseline = open_signed(data, [PUBLIC], DEVICE, 0, NOW)
    assert device.store.again(data, baseline, "boot")
    assert [slot.image.name for slot in device.store.slots()] == ["pump B", "pump A"]  # A is expected now
    other = device.baseline("A", 7)
    assert not device.store.again(other, open_signed(other, [PUBLIC], DEVICE, 0, NOW), "boot")
    plain = device.baseline("", 7)
    assert not device.store.again(plain, open_signed(plain, [PUBLIC], DEVICE, 0, NOW), "boot")


def test_a_power_cut_between_the_file_and_its_slot(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.install("A", 8)
    monkeypatch.setattr(Store, "_admit", lambda *_words: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        device.install("B", 9)
    monkeypatch.undo()
    assert device.in_force() == ("pump A", 8)
    device.boot("B")
    assert device.in_force() == ("pump B", 9)
    device.boot("A")
    assert device.in_force() == ("pump A", 8)


def test_baselines_for_any_system_go_on_as_before(device: Device) -> None:
    device.install("", 1)
    device.install("", 2)
    assert (device.in_force(), device.store.slots()) == (("", 2), ())
    device.install("A", 3)
    device.boot("B")
    assert device.in_force() == ("pump A", 3)


def test_an_image_is_named_by_one_reference_value() -> None:
    baseline = compile_baseline(Policy(), {}, None, 1, NOW)
    assert image_of(baseline) is None
    for table in (
        {"a": {"sha256": bytes(32)}, "b": {"sha256": bytes(32)}},
        {"a": {"sha256": b"short"}},
        {"a": {}},
        {"a": None},
        {"": {"sha256": bytes(32)}},
        {"two\nlines": {"sha256": bytes(32)}},
        {"x" * 200: {"sha256": bytes(32)}},
    ):
        with pytest.raises(Corrupt):
            image_of(baseline._replace(references={"image": table}))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"IMAGE_ID=pump\nIMAGE_VERSION=2\n", "pump 2"),
        (b"IMAGE_VERSION='2 b'\n", "2 b"),
        (b'IMAGE_ID="pump"\nIMAGE_VERSION="2"', "pump 2"),
        (b"IMAGE_ID=pump\n", ""),
        (b"", ""),
        (b"\xff\x00IMAGE_VERSION=\x1b[31m\xff\n", ""),
        (b"IMAGE_VERSION=" + b"9" * 500, "9" * 120),
    ],
)
def test_the_name_in_an_os_release(data: bytes, name: str) -> None:
    assert name_in(data) == name


def test_an_os_release_is_read_without_following_anything(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(release("X"))
    root = tmp_path / "root"
    (root / "usr/lib").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "usr/lib/os-release").symlink_to(tmp_path / "elsewhere")
    assert lies_in(str(root)) is None
    os.mkfifo(root / "etc/os-release")
    assert lies_in(str(root)) is None
    (root / "etc/os-release").unlink()
    (root / "etc/os-release").write_text(release("A"))
    assert lies_in(str(root)) == of("A")
    (root / "usr/lib/os-release").unlink()
    (root / "usr/lib/os-release").write_bytes(b"x" * 100_000)
    assert lies_in(str(root)) == of("A")
    assert lies_in(str(tmp_path / "nowhere")) is None


def test_slots_survive_their_file_and_damage_in_it() -> None:
    slots = (Slot(of("A"), 8, ""), Slot(Image("ü and spaces", bytes(32)), 9, "boot"))
    data = slotting.to_text(slots)
    assert slotting.from_text(data) == slots
    for at in range(len(data)):
        for kept in slotting.from_text(data[:at] + b"\xff" + data[at + 1 :]):
            assert len(kept.image.sha256) == 32
    assert slotting.from_text(data * 3) == slots
    assert slotting.from_text(b"\n \nx y z\n") == ()


def test_a_signature_of_nobody_makes_no_slot(device: Device) -> None:
    with pytest.raises(BadSignature):
        open_signed(device.baseline("B", 9, seed=bytes(32)), [PUBLIC], DEVICE, 0, NOW)
