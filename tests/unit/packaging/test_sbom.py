"""The SBOM in each package: deterministic, as CycloneDX wants it, and refused where it is not true."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(TOP / "packaging/tools"))
import check_deb  # noqa: E402 - a tool that is no package
import sbom  # noqa: E402 - as above

EPOCH = 1_790_000_000
CONTROL = """Package: edgeguard
Version: 1.2.3
Architecture: all
Maintainer: The EdgeGuard authors <edgeguard@example.org>
Depends: python3:any, python3-cbor2, systemd (>= 252), systemd | systemd-sysusers, python3-systemd
Recommends: nftables
Description: device guard
 and more
"""


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    root = tmp_path / "edgeguard"
    for name, content in {"DEBIAN/control": CONTROL, "usr/bin/x": "x", "usr/lib/y": "y", "DEBIAN/postrm": "z"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "usr/sbin").mkdir()
    (root / "usr/sbin/x").symlink_to("../bin/x")
    return root


def test_it_is_what_the_specification_asks_for(staged: Path) -> None:
    document = sbom.document(staged, EPOCH)
    assert list(check_deb.structure(document)) == []
    assert list(check_deb.agreement(document, staged)) == []
    assert document["metadata"]["timestamp"] == "2026-09-21T14:13:20Z"
    by_name = {item["name"]: item for item in document["components"]}
    assert set(by_name) == {
        *("nftables", "python3", "python3-cbor2", "python3-systemd", "systemd"),
        *("/usr/bin/x", "/usr/lib/y"),
    }
    assert by_name["nftables"]["scope"] == "optional"
    assert by_name["systemd"]["properties"] == [{"name": "edgeguard:range:debian", "value": ">= 252"}]
    assert {"name": "edgeguard:range:python", "value": ">=235"} in by_name["python3-systemd"]["properties"]


def test_the_same_tree_gives_the_same_bytes(staged: Path) -> None:
    def made(**environment: str) -> bytes:
        command = [sys.executable, str(TOP / "packaging/tools/sbom.py"), str(staged)]
        kept = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH), **environment}
        return subprocess.run(command, env=kept, check=True, capture_output=True).stdout

    first = made(TZ="UTC", PYTHONHASHSEED="1")
    assert first == made(TZ="Asia/Tokyo", PYTHONHASHSEED="2")
    (staged / "usr/bin/x").write_text("changed")
    assert json.loads(first)["serialNumber"] != json.loads(made())["serialNumber"]


def broken(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Puts `value` at a dotted path."""

    def breaks(document: dict[str, Any]) -> None:
        *way, last = path.split(".")
        place: Any = document
        for step in way:
            place = place[int(step)] if isinstance(place, list) else place[step]
        place[int(last) if isinstance(place, list) else last] = value

    return breaks


@pytest.mark.parametrize(
    "breaks",
    [
        broken("bomFormat", "SPDX"),
        broken("specVersion", "1.4"),
        broken("serialNumber", "urn:uuid:1"),
        broken("version", 0),
        broken("extra", 1),
        broken("metadata.timestamp", "yesterday"),
        broken("components.0.type", "program"),
        broken("components.0.purl", "pkg:deb/debian/A"),
        broken("components.0.bom-ref", "file:/usr/bin/x"),
        broken("components.0.licenses", [{"expression": ""}]),
        broken("components.0.extra", 1),
        broken("components.5.hashes", [{"alg": "SHA-256", "content": "00"}]),
        broken("dependencies.0.dependsOn", ["pkg:deb/debian/nobody"]),
    ],
)
def test_a_broken_document_is_noticed(staged: Path, breaks: Callable[[dict[str, Any]], None]) -> None:
    document = copy.deepcopy(sbom.document(staged, EPOCH))
    breaks(document)
    assert list(check_deb.structure(document))


def test_a_document_that_is_not_true_is_noticed(staged: Path) -> None:
    document = sbom.document(staged, EPOCH)
    (staged / "usr/bin/x").write_text("changed")
    (staged / "usr/bin/new").write_text("new")
    (staged / "usr/lib/y").unlink()
    (staged / "DEBIAN/control").write_text(CONTROL.replace("python3-cbor2, ", ""))
    assert len(list(check_deb.agreement(document, staged))) == 4


def test_a_dependency_without_a_licence_stops_the_build(staged: Path) -> None:
    (staged / "DEBIAN/control").write_text(CONTROL.replace("python3-cbor2", "python3-requests"))
    with pytest.raises(SystemExit, match="no licence is known for python3-requests"):
        sbom.document(staged, EPOCH)


def test_every_dependency_of_the_packages_has_a_licence() -> None:
    text = (TOP / "packaging/debian/control").read_text()
    for paragraph in text.split("\n\n")[1:]:
        fields = sbom.control_fields(paragraph)
        asked = {
            **sbom.relations(fields["Depends"].replace("${misc:Depends},\n", "").replace("${python3:Depends}", ""))
        }
        assert asked.keys() | sbom.relations(fields.get("Recommends", "")).keys() <= sbom.LICENCES.keys()
