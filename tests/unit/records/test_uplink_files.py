"""What the uplink leaves in the inbox is whole, also after a power cut."""

import os

from edgeguard.records import uplink


def test_a_receipt_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *words, n=name, call=original: (done.append(n), call(*words)))
    uplink._replace(f"{tmp_path}/receipt.egr", b"a receipt")
    assert done == ["fsync", "replace"]
    assert (tmp_path / "receipt.egr").read_bytes() == b"a receipt"
