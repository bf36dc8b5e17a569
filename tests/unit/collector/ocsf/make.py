#!/usr/bin/python3
"""make.py SCHEMA: cuts the published OCSF schema (the compiled one that its server exports, version 1.8.0) to what our
classes and objects need, without descriptions, and writes it beside this file.

The schema is at https://schema.ocsf.io (Apache-2.0); the Python package ocsf-json-schema carries it as
ocsf_json_schema/ocsf/1.8.0.json. Only names, types, requirements and numbers are kept.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

CLASSES = (
    *("base_event", "file_activity", "process_activity", "event_log_actvity", "peripheral_activity"),
    *("detection_finding", "authentication", "network_activity", "inventory_info", "config_state"),
    *("application_lifecycle", "remediation_activity"),
)
OBJECTS = (
    *("metadata", "product", "device", "actor", "process", "file", "fingerprint", "user", "session", "service"),
    *("network_endpoint", "network_connection_info", "peripheral_device", "finding_info", "analytic", "attack"),
    *("technique", "remediation", "evidences"),
)


def attribute(source: dict[str, Any]) -> dict[str, Any]:
    kept = {"type": source["type"], "requirement": source.get("requirement", "optional")}
    for name in ("object_type", "is_array", "profiles"):
        if source.get(name):
            kept[name] = source[name]
    if "enum" in source:
        kept["enum"] = list(source["enum"])
    if "@deprecated" in source:
        kept["deprecated"] = True
    return kept


def cut(source: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {
        "attributes": {name: attribute(value) for name, value in sorted(source["attributes"].items())}
    }
    if "uid" in source:
        kept |= {"uid": source["uid"], "category_uid": source["category_uid"]}
    if source.get("constraints"):
        kept["constraints"] = source["constraints"]
    return kept


def main(path: str) -> None:
    schema = json.loads(Path(path).read_text())
    assert schema["version"] == "1.8.0", schema["version"]
    types = schema["dictionary"]["types"]["attributes"]
    made = {
        "version": schema["version"],
        "classes": {name: cut(schema["classes"][name]) for name in CLASSES},
        "objects": {name: cut(schema["objects"][name]) for name in OBJECTS},
        "types": {
            name: {key: value[key] for key in ("type", "regex", "max_len", "range") if key in value}
            for name, value in sorted(types.items())
        },
    }
    target = Path(__file__).with_name("schema-1.8.0.json")
    target.write_text(json.dumps(made, sort_keys=True, indent=0, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
