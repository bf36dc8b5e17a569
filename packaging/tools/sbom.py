#!/usr/bin/python3
"""sbom.py STAGED-PACKAGE: what is in a package, as CycloneDX 1.5 in JSON on standard output; debian/rules calls it.

The same tree gives the same bytes: the time is SOURCE_DATE_EPOCH, the serial number a digest of the rest. Dependencies
are those of the staged DEBIAN/control, so the document says what apt will ask for; CycloneDX 1.5 has no version ranges,
so they stand in properties, Debian's own and those of pyproject.toml. Every file that is shipped is there with its
SHA-256, but the document itself and dpkg's own files.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

TOP = Path(__file__).resolve().parents[2]
NAME = "sbom.cdx.json"
OURS = "Apache-2.0"
# SPDX expressions; a dependency that is not here stops the build, so that nobody forgets to look.
LICENCES = {
    "nftables": "GPL-2.0-only",
    "openssl": "Apache-2.0",
    "python3": "PSF-2.0",
    "python3-aiohttp": "Apache-2.0",
    "python3-cbor2": "MIT",
    "python3-cryptography": "Apache-2.0 OR BSD-3-Clause",
    "python3-psutil": "BSD-3-Clause",
    "python3-pyudev": "LGPL-2.1-or-later",
    "python3-systemd": "LGPL-2.1-or-later",
    "systemd": "LGPL-2.1-or-later",
}
# Debian's name where it is not python3- and the name in pyproject.toml.
PYPROJECT_NAMES = {"python3-systemd": "systemd-python"}

_RELATION = re.compile(r"(?P<name>[a-z0-9][a-z0-9+.-]+)(?::any)?(?: \((?P<range>[<>=]+ [^)]+)\))?")


def control_fields(text: str) -> dict[str, str]:
    """The one paragraph of a DEBIAN/control."""
    fields: dict[str, str] = {}
    last = ""
    for line in text.splitlines():
        if line[:1] in " \t":
            fields[last] += "\n" + line.strip()
        elif line:
            last, _, value = line.partition(":")
            fields[last] = value.strip()
    return fields


def relations(field: str) -> dict[str, list[str]]:
    """Package -> version ranges ("a (>= 1), a (<< 2)" has two). Of alternatives the first, which is apt's choice."""
    found: dict[str, list[str]] = {}
    for item in filter(None, (part.partition("|")[0].strip() for part in field.replace("\n", " ").split(","))):
        match = _RELATION.fullmatch(item)
        if match is None:
            raise SystemExit(f"sbom: cannot read the dependency {item!r}")
        found.setdefault(match["name"], [])
        if match["range"]:
            found[match["name"]].append(match["range"])
    return found


def python_ranges() -> dict[str, str]:
    """Requirement -> range, from pyproject.toml."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["collector"]]
    pairs = (re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", item) for item in wanted)
    return {pair[1]: pair[2] for pair in pairs if pair}


def dependency(name: str, ranges: list[str], scope: str, python: dict[str, str]) -> dict[str, Any]:
    if name not in LICENCES:
        raise SystemExit(f"sbom: no licence is known for {name}; add it to LICENCES")
    properties = [{"name": "edgeguard:range:debian", "value": item} for item in ranges]
    asked = python.get(PYPROJECT_NAMES.get(name, name.removeprefix("python3-")))
    if asked and name.startswith("python3-"):
        properties.append({"name": "edgeguard:range:python", "value": asked})
    purl = f"pkg:deb/debian/{name}"
    found: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "scope": scope, "purl": purl}
    found["licenses"] = [{"expression": LICENCES[name]}]
    return found | ({"properties": properties} if properties else {})


def shipped(root: Path) -> Iterator[dict[str, Any]]:
    """Every regular file below the staged package, but dpkg's own and the document."""
    for path in sorted(root.rglob("*")):
        name = "/" + str(path.relative_to(root))
        if not path.is_file() or path.is_symlink() or name.startswith("/DEBIAN/") or path.name == NAME:
            continue
        digest = {"alg": "SHA-256", "content": sha256(path.read_bytes()).hexdigest()}
        yield {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": [digest]}


def document(root: Path, epoch: int) -> dict[str, Any]:
    """The whole of it, of a staged package."""
    control = control_fields((root / "DEBIAN/control").read_text())
    python = python_ranges()
    name, version = control["Package"], control["Version"]
    purl = f"pkg:deb/debian/{name}@{version}?arch={control['Architecture']}"
    described = {
        "type": "application",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "description": control["Description"].split("\n")[0],
        "licenses": [{"expression": OURS}],
        "supplier": {"name": re.sub(r" <.*>", "", control["Maintainer"])},
    }
    needed = relations(control.get("Pre-Depends", "") + "," + control.get("Depends", ""))
    wished = relations(control.get("Recommends", ""))
    libraries = [dependency(item, needed[item], "required", python) for item in sorted(needed)]
    libraries += [dependency(item, wished[item], "optional", python) for item in sorted(wished)]
    refs = [library["bom-ref"] for library in libraries]
    found: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": described,
        },
        "components": [*libraries, *shipped(root)],
        "dependencies": [{"ref": purl, "dependsOn": refs}, *({"ref": ref} for ref in refs)],
    }
    digest = sha256(json.dumps(found, sort_keys=True).encode()).digest()
    return {"serialNumber": f"urn:uuid:{UUID(bytes=digest[:16], version=5)}"} | found


def main(arguments: list[str]) -> int:
    found = document(Path(arguments[0]), int(os.environ["SOURCE_DATE_EPOCH"]))
    print(json.dumps(found, indent=1, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
