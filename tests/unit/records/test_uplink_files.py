"""What the uplink leaves in the inbox is whole, also after a power cut; and it sends nothing that one could take."""

import contextlib
import os
import time

import pytest

from edgeguard.codec import cose
from edgeguard.records import link, outbox, uplink
from edgeguard.records.outbox import Name
from edgeguard.settings import Paths, Settings
from tests import lent


def test_a_receipt_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *words, n=name, call=original: (done.append(n), call(*words)))
    outbox.replace(f"{tmp_path}/receipt.egr", b"a receipt")
    assert done == ["fsync", "replace"]
    assert (tmp_path / "receipt.egr").read_bytes() == b"a receipt"


def test_what_is_sent_has_its_name_for_good(tmp_path, monkeypatch):
    done = []
    (tmp_path / "outbox").mkdir()
    synced = os.fsync

    def sync(fd):
        done.append(("fsync", os.readlink(f"/proc/self/fd/{fd}")))
        synced(fd)

    class Collector:
        def post(self, body):
            done.append(("post", body))
            raise link.UplinkError("refused", "in this test")

    monkeypatch.setattr(os, "fsync", sync)
    sender = uplink.Uplink(Settings(paths=Paths(exchange=str(tmp_path)))).first
    with pytest.raises(link.UplinkError):
        sender._send(Collector(), {Name(0, 1): b"a segment"})
    assert done == [("fsync", f"{tmp_path}/outbox"), ("post", b"a segment")]


def test_what_the_sealer_still_holds_is_not_sent(tmp_path):
    """Its records may be sealed once more, should the file be damaged before their journal is free."""
    directory = tmp_path / "outbox"
    directory.mkdir()
    for number, mode in ((1, outbox.HANDED_OUT), (2, outbox.HELD)):
        path = directory / Name(0, number).file
        path.write_bytes(cose.sign1(b"%d" % number, bytes(32), cose.SEGMENT_AAD))
        path.chmod(mode)
    sender = uplink.Uplink(Settings(paths=Paths(exchange=str(tmp_path)))).first
    assert set(sender._batch(sender.waiting())) == {Name(0, 1)}
    assert sender.refused == {}
    (directory / Name(0, 2).file).chmod(outbox.HANDED_OUT)
    # In the same run: nobody rings for it once more while one goes on.
    assert set(sender._batch(sender.waiting())) == {Name(0, 1), Name(0, 2)}


def test_the_time_that_is_over_is_no_error_of_one_address():
    """The library goes on with the next address of a name after an OSError, and a name may have hundreds."""
    tried = []

    def addresses() -> None:
        with link.deadline(1, "collector:443"):
            for address in range(100):
                with contextlib.suppress(OSError):
                    tried.append(address)
                    time.sleep(5)

    with pytest.raises(link.UplinkError, match="no answer in time"):
        addresses()
    assert tried == [0]


def test_a_directory_in_place_of_a_segment_costs_no_descriptor(tmp_path):
    for file in (Name(0, 1).file, outbox.epoch_file(1)):
        (tmp_path / file).mkdir()
    before = len(lent.open_now())
    for read in (lambda: outbox.read(str(tmp_path), Name(0, 1)), lambda: outbox.read_epoch(str(tmp_path), 1)):
        with pytest.raises(IsADirectoryError):
            read()
    assert len(lent.open_now()) == before
