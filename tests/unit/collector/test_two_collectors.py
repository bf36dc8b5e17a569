"""A second collector, as fallback or as copy: receipts are kept apart, and what leaves is with whom it has to be."""

import os
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_world import Device, moment, state
from world import Serving, collector, contents, join, known, status

from edgeguard.codec import cose
from edgeguard.errors import SettingsError
from edgeguard.records import compose, confirmed, receipts, uplink
from edgeguard.records.receipts import Head, Receipt
from edgeguard.settings import Second, parse

pytest.importorskip("aiohttp", reason="python3-aiohttp is what the collector serves with")


class Two:
    """Two collectors that can be switched off and on, and a device that knows both."""

    def __init__(self, device: Device, root: Path, mode: str) -> None:
        self.device = device
        self.mode = mode
        self.directories = [collector(str(root / name), device) for name in ("first", "second")]
        self.serving: list[Serving | None] = [None, None]
        self.ports = [1, 1]

    def on(self, place: int) -> None:
        self.serving[place] = Serving(self.directories[place])
        self.ports[place] = self.serving[place].port
        self.join()

    def off(self, place: int) -> None:
        if self.serving[place] is not None:
            self.serving[place].stop()
            self.serving[place] = None

    def join(self) -> None:
        second = Second(**known(self.directories[1], self.ports[1]), mode=self.mode)
        join(self.device, self.directories[0], self.ports[0], second=second)

    def run(self) -> dict:
        uplink.Uplink(self.device.settings).run()
        self.sealed = self.device.seal()
        return status(self.device)

    def has(self, place: int) -> int:
        return len(contents(self.directories[place])["segments"])


@pytest.fixture
def two(device, tmp_path, request):
    both = Two(device, tmp_path, request.param)
    yield both
    both.off(0)
    both.off(1)


def records(device: Device, count: int) -> None:
    for number in range(count):
        device.record_and_seal(state(f"{number}"), compose.text("noise", moment()))


@pytest.mark.parametrize("two", ["copy"], indirect=True)
def test_a_copy_leaves_only_when_both_have_it(two, device):
    two.on(0)
    two.on(1)
    two.off(1)
    records(device, 3)
    said = two.run()
    assert (said["ok"], said["name"], said["waiting"]) == (False, "unreachable", 6)
    assert said["error"].startswith("second collector:")
    assert (two.has(0), len(device.segments()), two.sealed["waiting"]) == (3 * 2, 6, 6)
    two.on(1)
    two.off(0)
    said = two.run()
    assert (said["ok"], said["sent"], said["second"]["sent"]) == (True, 0, 6)  # the first was not needed
    assert (len(device.segments()), two.sealed["waiting"], two.has(1)) == (2, 0, 6)
    two.on(0)
    records(device, 1)
    assert two.run()["ok"]
    assert contents(two.directories[0]) == contents(two.directories[1])
    assert two.sealed["problems"] == []
    assert os.path.exists(f"{device.spool_directory}/receipt-2.egr")


@pytest.mark.parametrize("two", ["fallback"], indirect=True)
def test_a_fallback_hears_what_waits_and_the_first_gets_it_too(two, device):
    two.on(0)
    two.on(1)
    records(device, 2)
    said = two.run()
    assert (said["ok"], said["sent"], said["second"]["sent"]) == (True, 4, 0)
    assert (two.has(0), two.has(1), len(device.segments())) == (4, 0, 2)
    two.off(0)
    records(device, 2)
    said = two.run()
    assert (said["ok"], said["name"], said["retry_after"]) == (False, "unreachable", None)
    assert "the second collector answers" in said["error"]
    assert (two.has(0), two.has(1), len(device.segments())) == (4, 4, 4)
    assert (said["second"]["sent"], said["second"]["waiting"]) == (4, 0)
    assert two.run()["second"]["sent"] == 0  # held there beyond a gap: not sent twice
    two.on(0)
    said = two.run()
    assert (said["ok"], said["sent"]) == (True, 4)
    assert (two.has(0), len(device.segments()), two.sealed["waiting"]) == (8, 2, 0)
    assert contents(two.directories[0])["incidents"] == []


@pytest.mark.parametrize("two", ["fallback"], indirect=True)
def test_a_fallback_that_is_not_there_is_told_before_it_is_needed(two, device):
    two.on(0)
    records(device, 1)
    said = two.run()
    assert (said["ok"], said["sent"], said["waiting"], said["retry_after"]) == (False, 2, 0, None)
    assert said["error"].startswith("second collector:")
    two.on(1)
    assert two.run()["ok"]
    two.off(1)
    assert two.run()["ok"]  # asked once a day


@pytest.mark.parametrize("two", ["copy"], indirect=True)
def test_each_receipt_counts_for_its_collector_only(two, device):
    """The second's key cannot speak for the first, and a receipt in the other's place is a stranger's."""
    two.on(0)
    two.on(1)
    records(device, 2)
    two.run()
    records(device, 2)
    before = device.segments()
    for signer, file in ((1, receipts.FILE), (0, receipts.SECOND_FILE)):
        seed = Path(two.directories[signer], "collector.key").read_bytes()
        newest = Head(0, 4, sha256(before["0-0000000000000004.egs"]).digest())
        data = cose.sign1(receipts.encode(Receipt(device.id, 9, (newest,))), seed, cose.RECEIPT_AAD)
        Path(device.inbox, file).write_bytes(data)
    result = device.seal()
    assert device.segments() == before
    assert sorted(problem.split(":")[0] for problem in result["problems"]) == [receipts.SECOND_FILE, receipts.FILE]


HEADS = st.dictionaries(st.integers(0, 3), st.integers(1, 50), max_size=4).map(
    lambda found: tuple(Head(stream, number, bytes([number]) * 32) for stream, number in found.items())
)
RECEIPT = st.builds(
    Receipt, st.just(bytes(16)), st.just(5), HEADS,
    dictionaries=st.lists(st.integers(0, 3), unique=True).map(tuple),
    baselines=st.lists(st.sampled_from([b"a" * 8, b"b" * 8]), unique=True).map(tuple),
)  # fmt: skip


@given(st.none() | RECEIPT, st.none() | RECEIPT, st.booleans())
def test_together_is_never_more_than_the_first_says(first, second, copy):
    both = confirmed.together(first, second, copy=copy)
    if both is None:
        assert first is None or (copy and second is None)
        return
    assert first is not None
    for head in both.heads:
        assert first.head(head.stream).sequence >= head.sequence
        assert head in (first.head(head.stream), second.head(head.stream) if second else None)
        if copy:
            assert second.head(head.stream).sequence >= head.sequence
    for words in ("dictionaries", "baselines"):
        used = set(getattr(both, words)) - {0}
        assert used <= set(getattr(first, words)) & set(getattr(second, words) if second else ())


def test_a_mode_that_is_none_is_refused():
    assert parse(b'[uplink.second]\nurl = "https://b"\nmode = "copy"\n').uplink.second.mode == "copy"
    with pytest.raises(SettingsError, match=r"uplink\.second\.mode"):
        parse(b'[uplink.second]\nmode = "both"\n')
    with pytest.raises(SettingsError, match=r"uplink\.second\.urls"):
        parse(b'[uplink.second]\nurls = "both"\n')
