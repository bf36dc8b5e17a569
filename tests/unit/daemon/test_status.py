"""The status document: whatever words come in from outside, no control byte goes out."""

from __future__ import annotations

import json

from edgeguard.cli import render
from edgeguard.daemon.status import Facts, document
from edgeguard.evaluate.ledger import Ledger

BAD = "a\x1b[2Jb\nc\x9b\udcff\u202e"


def facts() -> Facts:
    return Facts(
        name=BAD,
        fleet=BAD,
        now=1_800_000_000_000,
        started=1_800_000_000_000,
        checked=None,
        files_watched=1,
        files_checked=None,
        counts={},
        packages_incomplete=0,
        packages_changed=None,
        sequence=1,
        log_since=None,
        log_error=BAD,
        spool={"fleeting": "", "durable": True, "bytes": 1, "limit": 2, "let_go": {"verbose": 3}, "written": 4096},
        uplink_state="WARN",
        uplink_waiting=1,
        uplink_transport="mqtt",
        uplink_last=None,
        uplink_error=BAD,
        clock_synchronised=None,
        trust="local",
        signer="",
        mode="audit",
        learning=None,
        problems=(f"uplink: {BAD}", f"baseline {BAD}: {BAD}"),
        cpu_percent=0.0,
    )


def test_no_control_byte_reaches_the_screen_or_status_json() -> None:
    status = document(facts(), Ledger(), None)
    screens = [render.status(status, columns, False, True, 40) for columns in (40, 80)]
    for text in (*screens, json.dumps(status, ensure_ascii=False)):
        assert all(letter.isprintable() or letter == "\n" for letter in text), text


def test_the_way_to_the_collector_is_said() -> None:
    for transport, words in (
        ("mqtt", "last sent 5 s ago by MQTT, 1 waiting"),
        ("https", "last sent 5 s ago, 1 waiting"),
    ):
        said = facts()._replace(
            uplink_error="", uplink_state="OK", uplink_last=1_799_999_995_000, uplink_transport=transport
        )
        status = document(said, Ledger(), None)
        assert status["areas"]["uplink"]["transport"] == transport
        assert words in render.status(status, 80, False, True, 40)
