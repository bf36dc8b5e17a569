"""What changed in a file goes through every room: kept while learning, compared under a running daemon, shown to
people, sealed, and read at the collector; and no secret and no earlier content goes where it does not belong.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from walker import SETTINGS, Walk, learned

from edgeguard.collector import events, store
from edgeguard.collector.ingest import Ingest

POLICY = """
[[watch]]
path = "/etc"
category = "config"
diff = true
nodiff = ["/etc/*.secret"]

[[watch]]
path = "/etc/cron.d"
category = "cron"
diff = true

[[rule]]
id = "content"
code = "EG-FILE-001"
kind = "file"
severity = "high"
where = {{ type = "file", known = true }}
expect = {{ sha256 = {{ same = true }} }}

[[rule]]
id = "new"
code = "EG-PERS-001"
kind = "file"
severity = "high"
where = {{ type = "file" }}
expect = {{ known = true }}
"""
SECRET = "Tr0ub4dor&3"


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Walk]:
    for name in ("root/etc/cron.d", "root/proc"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "root/etc/cron.d/pump").write_text("# the pump\n5 4 * * * root /usr/bin/pump\n")
    (tmp_path / "root/etc/app.conf").write_text(f"listen = 80\npassword = {SECRET}\nname = pump\n")
    (tmp_path / "root/etc/app.secret").write_text("a\n")
    (tmp_path / "root/etc/logo.bin").write_bytes(b"\0\1\2")
    settings = SETTINGS.replace("[paths]\n", '[paths]\nroot = "{base}/root"\n')
    with learned(Walk(tmp_path, POLICY, settings)) as one:
        yield one


def finding_of(walk: Walk, path: str) -> dict[str, Any]:
    found = [item for item in walk.findings("--all") if item["subject"] == path and item["state"] == "open"]
    return found[0] if found else {}


def noticed(walk: Walk, path: str) -> dict[str, Any]:
    """The finding about one path; found by the scan that is asked for where no rung tells of it."""
    walk.ask("scan")
    finding = walk.until(lambda: finding_of(walk, path))
    assert isinstance(finding, dict)
    return finding


def collected(walk: Walk) -> list[dict[str, Any]]:
    """All records, as a collector that knows this device takes and decodes them."""
    connection = store.connect(":memory:")
    ingest = Ingest(connection, b"\x02" * 32, lambda: 1)
    ingest.add_device("walk", bytes.fromhex((walk.base / "state/keys/device.pub").read_text()))
    segments = walk.segments()
    statements = segments[0].parent.glob("*.ege") if segments else ()
    verdicts = ingest.take_files([path.read_bytes() for path in (*segments, *statements)])
    assert all(verdict.taken for verdict in verdicts)
    return [event for _, event in events.page(connection, 0)]


def test_a_job_is_told_in_words_and_line_by_line_everywhere(walk: Walk) -> None:
    job = walk.base / "root/etc/cron.d/pump"
    job.write_text(job.read_text() + "*/5 * * * * root /tmp/x --token S3cr3t-T0ken\n")
    finding = noticed(walk, "/etc/cron.d/pump")
    assert finding["details"]["changes"] == ["job added: */5 * * * * root /tmp/x --token ***"]
    diff = ["@@ -1,2 +1,3 @@", " # the pump", " 5 4 * * * root /usr/bin/pump", "+*/5 * * * * root /tmp/x --token ***"]
    assert finding["details"]["diff"] == diff
    page = walk.ask("explain", str(finding["id"])).stdout
    assert "Changes  job added: */5 * * * * root /tmp/x --token ***\n" in page
    assert "Diff     @@ -1,2 +1,3 @@\n          # the pump\n" in page
    assert "+*/5 * * * * root /tmp/x --token ***\n" in page
    why = walk.ask("why", "/etc/cron.d/pump").stdout
    assert "job added" in why
    assert "+*/5 * * * * root" in why
    walk.until(lambda: [item for item in collected(walk) if item.get("subject") == "/etc/cron.d/pump"])
    record = next(item for item in collected(walk) if item.get("subject") == "/etc/cron.d/pump")
    assert record["details"]["changes"] == finding["details"]["changes"]
    assert record["details"]["diff"] == diff
    public = (walk.base / "run/status.json").read_text()
    assert "/etc/cron.d/pump" in public
    assert "/tmp/x" not in public  # anybody may read it


def test_a_secret_that_changes_is_a_changed_line_without_it(walk: Walk) -> None:
    path = walk.base / "root/etc/app.conf"
    path.write_text(path.read_text().replace(SECRET, "An0therOne!"))
    finding = noticed(walk, "/etc/app.conf")
    assert "-password = ***" in finding["details"]["diff"]
    assert "+password = ***" in finding["details"]["diff"]
    walk.until(lambda: [item for item in collected(walk) if item.get("subject") == "/etc/app.conf"])
    everything = json.dumps(finding) + json.dumps(collected(walk)) + walk.ask("why", "/etc/app.conf").stdout
    assert SECRET not in everything
    assert "An0therOne!" not in everything


def test_what_is_not_shown_says_why(walk: Walk) -> None:
    root = walk.base / "root/etc"
    (root / "app.secret").write_text("b\n")
    (root / "logo.bin").write_bytes(b"\0\1\3")
    assert noticed(walk, "/etc/logo.bin")["details"]["diff"] == [
        "(not shown: what was there before is no text in UTF-8)"
    ]
    assert "diff" not in noticed(walk, "/etc/app.secret")["details"]
    kept = {path.read_bytes() for path in (walk.base / "state/vault").iterdir()}
    assert b"a\n" not in kept


def test_a_new_file_is_told_and_without_a_copy_nothing_is_made_up(walk: Walk) -> None:
    (walk.base / "root/etc/cron.d/evil").write_text("@reboot root /tmp/y\n")
    finding = noticed(walk, "/etc/cron.d/evil")
    assert finding["details"]["changes"] == ["job added: @reboot root /tmp/y"]
    assert finding["details"]["diff"] == ["@@ -0,0 +1 @@", "+@reboot root /tmp/y"]
    for copy in (walk.base / "state/vault").iterdir():
        copy.unlink()
    (walk.base / "root/etc/cron.d/pump").write_text("changed\n")
    finding = noticed(walk, "/etc/cron.d/pump")
    assert finding["details"]["diff"] == ["(no earlier copy to compare with)"]
    assert "changes" not in finding["details"]
