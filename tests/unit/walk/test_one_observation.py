"""One real observation through every room, with the real daemon as an ordinary user: learned, changed, noticed, told,
sealed, and read by other people's libraries. Which rungs it stands on here does not matter: a change of a file is
noticed on each of them (at the latest by the scan that is asked for).
"""

from __future__ import annotations

import json
import os
import signal
import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from walker import Walk, learned


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Walk]:
    with learned(Walk(tmp_path)) as one:
        yield one


def test_learned_noticed_sealed_resolved(walk: Walk) -> None:
    assert walk.ask("status").returncode == 0
    target = walk.watched / "tool-7"
    before = target.read_bytes()
    target.write_bytes(b"something else\n")
    (finding,) = walk.until(walk.findings)  # type: ignore[misc]
    assert (finding["code"], finding["subject"]) == ("EG-FILE-002", str(target))
    assert finding["expected"]["sha256"] == sha256(before).hexdigest()
    assert walk.ask("status").returncode == 2
    assert "tool-7" in "".join(walk.ask("explain", str(finding["id"])).stdout.split())  # long paths are wrapped
    walk.until(walk.segments)
    target.write_bytes(before)
    walk.until(lambda: not walk.findings())
    assert walk.findings("--all")[0]["state"] == "resolved"
    assert whole(walk)["summary"]["records"] > 0


def whole(walk: Walk) -> dict[str, Any]:
    """`edgeguard log verify` finds nothing, while the daemon and its sealer work."""
    answer: dict[str, Any] = json.loads(walk.ask("log", "verify", "-o", "json").stdout)
    assert answer["clean"], answer
    return answer


def test_kills_and_restarts_leave_a_whole_log(walk: Walk) -> None:
    for turn in range(3):
        (walk.watched / "tool-9").write_bytes(b"again\n" * turn)
        walk.stop(signal.SIGKILL)
        whole(walk)
        walk.start()
        walk.until(walk.learned)
        walk.until(walk.findings)
        walk.until(walk.segments)
    walk.stop()
    assert whole(walk)["summary"]["segments"] > 1
    newest = walk.segments()[-1]
    data = newest.read_bytes()
    newest.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    done = walk.ask("log", "verify")
    assert (done.returncode, f"altered: findings {int(newest.stem[2:])}" in done.stdout) == (2, True), done.stdout


def test_a_change_while_it_was_down_is_found_and_nothing_is_learned_again(walk: Walk) -> None:
    revision = json.loads((walk.base / "run/status.json").read_text())["policy"]["revision"]
    walk.stop(signal.SIGKILL)
    (walk.watched / "tool-3").write_bytes(b"changed meanwhile\n")
    os.unlink(walk.base / "run/status.json")
    walk.start()
    (finding,) = walk.until(walk.findings)  # type: ignore[misc]
    assert (finding["subject"], finding["origin"]) == (str(walk.watched / "tool-3"), "down")
    walk.until(walk.learned)
    assert json.loads((walk.base / "run/status.json").read_text())["policy"]["revision"] == revision


def test_accepted_it_is_the_baseline(walk: Walk) -> None:
    target = walk.watched / "tool-5"
    target.write_bytes(b"a better one\n")
    (finding,) = walk.until(walk.findings)  # type: ignore[misc]
    done = walk.ask("accept", str(finding["id"]), "--reason", "hotfix")
    assert done.returncode == 0, done.stderr
    walk.until(lambda: not walk.findings())
    walk.until(lambda: json.loads((walk.base / "run/status.json").read_text())["policy"]["revision"] == 2)
    assert walk.ask("status").returncode == 0
    target.write_bytes(b"a worse one\n")
    (finding,) = walk.until(walk.findings)  # type: ignore[misc]
    assert finding["expected"]["sha256"] == sha256(b"a better one\n").hexdigest()


def test_another_implementation_reads_our_segments(walk: Walk) -> None:
    """Signature by pycose, contents by a CBOR library that is not cbor2; both only where tests install them."""
    pytest.importorskip("pycose", reason="pycose is not installed")
    other_cbor = pytest.importorskip("cbor", reason="the cbor package is not installed")
    from pycose.headers import KID
    from pycose.keys import OKPKey
    from pycose.keys.curves import Ed25519
    from pycose.messages import CoseMessage

    (walk.watched / "tool-1").write_bytes(b"changed\n")
    public = bytes.fromhex((walk.base / "state/keys/device.pub").read_text())

    def verified(data: bytes, key: bytes, aad: bytes) -> CoseMessage:
        message = CoseMessage.decode(data)
        message.key = OKPKey(crv=Ed25519, x=key)
        message.external_aad = aad
        assert message.verify_signature()
        assert message.phdr[KID] == sha256(key).digest()[:8]
        return message

    def epochs() -> dict[int, bytes]:
        """Keys of segments, as the identity key vouches for them; the key before may have announced one."""
        found = {}
        for path in (walk.base / "exchange/outbox").glob("*.ege"):
            core = verified(path.read_bytes(), public, b"EGEPOC1").payload
            core = CoseMessage.decode(core).payload if core[:1] == b"\xd2" else core
            _, _, _, number, key, *_ = other_cbor.loads(core)
            found[number] = key
        return found

    def told() -> bool:
        """Is the finding in what others can read?"""
        seen = ""
        for path in walk.segments():
            epoch = other_cbor.loads(CoseMessage.decode(path.read_bytes()).payload)[4]
            message = verified(path.read_bytes(), epochs()[epoch], b"EGSEG1")
            header = other_cbor.loads(message.payload)
            assert (header[1], len(header)) == (sha256(public).digest()[:16], 16)
            body = other_cbor.loads(zlib.decompress(header[15], -15) if header[14] else header[15])
            seen += repr(body)
        return "watched/tool-1" in seen and "EG-FILE-002" in seen

    walk.until(told)
