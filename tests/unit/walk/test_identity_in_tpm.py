"""A real daemon whose identity key is in a real TPM (swtpm): it learns, seals, starts without the TPM, and says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from walker import SETTINGS, Walk

from tests.softtpm import SoftTpm, needed


@pytest.fixture
def soft() -> Iterator[SoftTpm]:
    needed()
    made = SoftTpm()
    made.start()
    yield made
    made.close()


@pytest.fixture
def walk(tmp_path: Path, soft: SoftTpm) -> Iterator[Walk]:
    one = Walk(tmp_path, settings=f'{SETTINGS}[identity]\nkind = "tpm2"\ntcti = "{soft.tcti}"\n')
    yield one
    one.stop()


def log_area(walk: Walk) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(walk.ask("status", "-o", "json").stdout)["areas"]["log"]
    return found


def doctor(walk: Walk, name: str = "identity") -> dict[str, Any]:
    rows = json.loads(walk.ask("doctor", "-o", "json").stdout)["checks"]
    return next((row for row in rows if row["name"] == name), {"text": "", "level": ""})


def whole(walk: Walk) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(walk.ask("log", "verify", "-o", "json").stdout)
    assert answer["clean"], answer
    return answer


def test_it_learns_seals_and_starts_without_its_tpm(walk: Walk, soft: SoftTpm) -> None:
    (walk.base / "state/keys").mkdir(parents=True)
    created = walk.ask("identity", "create")
    assert (created.returncode, "Signs     yes" in created.stdout) == (0, True), created.stderr
    walk.start()
    walk.until(walk.learned)
    target = walk.watched / "tool-7"
    target.write_bytes(b"something else\n")
    (finding,) = walk.until(walk.findings)  # type: ignore[misc]
    walk.until(walk.segments)
    assert (doctor(walk)["level"], "in the TPM" in doctor(walk)["text"]) == ("OK", True)
    assert (log_area(walk)["identity"], log_area(walk)["identity_error"]) == ("tpm2", "")
    accepted = walk.ask("accept", str(finding["id"]), "--reason", "hotfix")  # signed in the TPM: trust is local
    assert accepted.returncode == 0, accepted.stderr
    walk.until(lambda: not walk.findings())
    assert not (walk.base / "state/keys/device.key").exists()

    walk.stop()
    sealed = len(walk.segments())
    soft.stop()
    (walk.base / "run/epoch.key").unlink()  # as after a start of the device
    (walk.base / "run/status.json").unlink()
    walk.start()
    walk.until(walk.learned)
    target.write_bytes(b"a worse one\n")
    (again,) = walk.until(lambda: [found for found in walk.findings() if found["kind"] == "file"])  # type: ignore[misc]
    walk.until(lambda: log_area(walk)["identity_error"])
    assert "there is no TPM" in log_area(walk)["identity_error"]
    assert doctor(walk)["level"] == "FAIL"
    # What the vendor's policy makes EG-HLTH-007 of; this small one has no rule for it.
    assert "seal: " in doctor(walk, "problem")["text"]
    refused = walk.ask("accept", str(again["id"]), "--reason", "no")
    assert refused.returncode != 0
    assert "there is no TPM" in refused.stderr
    assert len(walk.segments()) == sealed
    whole(walk)

    walk.stop()
    soft.start()
    walk.start()
    walk.until(lambda: len(walk.segments()) > sealed)
    walk.until(lambda: not log_area(walk)["identity_error"])
    walk.until(lambda: "tool-7" in "".join(walk.ask("log", "-n", "200").stdout.split()))
    walk.stop()
    assert whole(walk)["summary"]["segments"] > sealed
