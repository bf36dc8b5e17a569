#!/usr/bin/python3
"""check_deb.py DEB...: does what a built package says about itself hold? Its SBOM against the specification, its own
files and its own control file. Needs dpkg-deb and nothing else, and no network.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import sbom

# CycloneDX 1.5, bom-1.5.schema.json
TYPES = {
    *("application", "framework", "library", "container", "platform", "operating-system", "device", "device-driver"),
    *("firmware", "file", "machine-learning-model", "data"),
}
SCOPES = {"required", "optional", "excluded"}
HASH_DIGITS = {"MD5": 32, "SHA-1": 40, "SHA-256": 64, "SHA-384": 96, "SHA-512": 128}
TOP_KEYS = {"bomFormat", "specVersion", "serialNumber", "version", "metadata", "components", "dependencies"}
COMPONENT_KEYS = {
    *("type", "bom-ref", "name", "version", "purl", "description", "licenses", "supplier", "scope", "hashes"),
    "properties",
}
SERIAL = re.compile(r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
PURL = re.compile(r"pkg:deb/debian/[a-z0-9][a-z0-9+.-]+(@[^?@/]+)?(\?arch=[a-z0-9]+)?")
EXPRESSION = re.compile(r"[A-Za-z0-9.+-]+( (AND|OR|WITH) [A-Za-z0-9.+-]+)*")


def structure(document: Any) -> Iterator[str]:
    """What the specification would not allow, of the part of it that we use; other keys are not allowed at all."""
    if not isinstance(document, dict) or document.keys() - TOP_KEYS:
        yield f"top: not an object of {sorted(TOP_KEYS)}"
        return
    if (document.get("bomFormat"), document.get("specVersion")) != ("CycloneDX", "1.5"):
        yield "top: not CycloneDX 1.5"
    if not SERIAL.fullmatch(str(document.get("serialNumber"))):
        yield "top: serialNumber is no UUID in lower case"
    if type(document.get("version")) is not int or document["version"] < 1:
        yield "top: version is no number from 1"
    metadata = document.get("metadata", {})
    if not TIME.fullmatch(str(metadata.get("timestamp"))):
        yield "metadata: timestamp is not ISO 8601 in UTC"
    components = [metadata.get("component"), *document.get("components", ())]
    for item in components:
        yield from component(item)
    refs = [item["bom-ref"] for item in components if isinstance(item, dict) and "bom-ref" in item]
    if len(set(refs)) != len(refs):
        yield "components: a bom-ref twice"
    named = [item.get("ref") for item in document.get("dependencies", ())]
    if len(set(named)) != len(named):
        yield "dependencies: a ref twice"
    pointed = {ref for item in document.get("dependencies", ()) for ref in item.get("dependsOn", ())}
    if not {*named, *pointed} <= set(refs):
        yield "dependencies: a ref that is no component"


def component(item: Any) -> Iterator[str]:
    if not isinstance(item, dict) or item.get("type") not in TYPES or not item.get("name"):
        yield f"component: no type or no name: {str(item)[:80]}"
        return
    where = f"component {item['name']}"
    if unknown := item.keys() - COMPONENT_KEYS:
        yield f"{where}: unknown keys {sorted(unknown)}"
    if "scope" in item and item["scope"] not in SCOPES:
        yield f"{where}: scope {item['scope']!r}"
    if "purl" in item and not PURL.fullmatch(item["purl"]):
        yield f"{where}: purl {item['purl']!r}"
    for digest in item.get("hashes", ()):
        digits = HASH_DIGITS.get(digest.get("alg"), 0)
        if digest.keys() != {"alg", "content"} or not re.fullmatch(rf"[0-9a-f]{{{digits}}}", digest.get("content", "")):
            yield f"{where}: a hash that is none"
    licences = item.get("licenses", [])
    if licences and (len(licences) != 1 or not EXPRESSION.fullmatch(licences[0].get("expression", ""))):
        yield f"{where}: licences are not one SPDX expression"
    for pair in item.get("properties", ()):
        if pair.keys() != {"name", "value"} or not all(isinstance(value, str) for value in pair.values()):
            yield f"{where}: a property is not name and value"


def agreement(document: dict[str, Any], root: Path) -> Iterator[str]:
    """Where the document and the package (unpacked, with DEBIAN/) disagree."""
    control = sbom.control_fields((root / "DEBIAN/control").read_text())
    described = document["metadata"]["component"]
    if (described["name"], described["version"]) != (control["Package"], control["Version"]):
        yield "it is of another package"
    said = {item["name"]: item["hashes"][0]["content"] for item in document["components"] if item["type"] == "file"}
    there = {
        "/" + str(path.relative_to(root)): sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and "DEBIAN" not in path.parts and path.name != sbom.NAME
    }
    yield from (f"not listed, or other bytes: {name}" for name, digest in there.items() if said.get(name) != digest)
    yield from (f"listed, but not shipped: {name}" for name in said.keys() - there.keys())
    asked = sbom.relations(",".join(control.get(field, "") for field in ("Pre-Depends", "Depends", "Recommends")))
    listed = {item["name"] for item in document["components"] if item["type"] == "library"}
    if asked.keys() != listed:
        yield f"its dependencies are not the package's: {sorted(asked.keys() ^ listed)}"


def check(deb: Path) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        subprocess.run(["/usr/bin/dpkg-deb", "-R", str(deb), str(root)], check=True)
        found = sorted(root.glob(f"usr/share/*/{sbom.NAME}"))
        if len(found) != 1:
            return [f"{deb.name}: {len(found)} SBOMs"]
        document = json.loads(found[0].read_bytes())
        return [f"{deb.name}: SBOM: {line}" for line in (*structure(document), *agreement(document, root))]


def main(arguments: list[str]) -> int:
    problems = [line for name in arguments for line in check(Path(name))]
    print("\n".join(problems) or f"{len(arguments)} packages: the SBOM is well formed and true")
    return bool(problems) or not arguments


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
