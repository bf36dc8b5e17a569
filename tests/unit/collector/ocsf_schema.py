"""A validator of OCSF events against the published schema, cut to what we use (ocsf/make.py): unknown and deprecated
attributes, requirements by profile, types with their patterns and ranges, enumerations, constraints, type_uid.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCHEMA = json.loads((Path(__file__).parent / "ocsf/schema-1.8.0.json").read_text())
BY_UID = {known["uid"]: known for known in SCHEMA["classes"].values()}
PYTHON = {"string_t": str, "integer_t": int, "long_t": int, "boolean_t": bool, "float_t": (int, float)}


def problems(event: dict[str, Any]) -> list[str]:
    known = BY_UID.get(event.get("class_uid"))
    if known is None:
        return [f"class_uid {event.get('class_uid')}"]
    found = list(_shape(event, known, set(event.get("metadata", {}).get("profiles", ())), ""))
    if event.get("type_uid") != event["class_uid"] * 100 + event.get("activity_id", -1):
        found.append("type_uid")
    if event.get("category_uid") != known["category_uid"]:
        found.append("category_uid")
    return found


def _shape(value: dict[str, Any], known: dict[str, Any], profiles: set[str], at: str) -> Iterator[str]:
    attributes = known["attributes"]
    for name, item in value.items():
        attribute = attributes.get(name)
        where = f"{at}{name}"
        if attribute is None:
            yield f"{where}: not in the schema"
        elif attribute.get("deprecated"):
            yield f"{where}: deprecated"
        elif attribute.get("profiles") and not profiles & set(attribute["profiles"]):
            yield f"{where}: belongs to the profile {attribute['profiles']}"
        elif attribute.get("is_array"):
            if not isinstance(item, list):
                yield f"{where}: no list"
            else:
                for place, part in enumerate(item):
                    yield from _value(part, attribute, profiles, f"{where}[{place}]")
        else:
            yield from _value(item, attribute, profiles, where)
    for name, attribute in attributes.items():
        wanted = not attribute.get("profiles") or profiles & set(attribute["profiles"])
        if attribute["requirement"] == "required" and wanted and name not in value:
            yield f"{at}{name}: is required"
    for constraint, names in known.get("constraints", {}).items():
        present = sum(name in value for name in names)
        if (constraint == "at_least_one" and not present) or (constraint == "just_one" and present != 1):
            yield f"{at or 'event'}: {constraint} of {names}"


def _value(value: Any, attribute: dict[str, Any], profiles: set[str], where: str) -> Iterator[str]:
    kind = attribute["type"]
    if kind == "object_t":
        if attribute["object_type"] == "object":  # anything, such as `unmapped`
            if not isinstance(value, dict):
                yield f"{where}: no object"
            return
        if not isinstance(value, dict):
            yield f"{where}: no object"
            return
        yield from _shape(value, SCHEMA["objects"][attribute["object_type"]], profiles, f"{where}.")
        return
    if kind == "json_t":
        return
    rules = SCHEMA["types"][kind]
    if not isinstance(value, PYTHON[rules.get("type", kind)]) or (isinstance(value, bool) and kind != "boolean_t"):
        yield f"{where}: {value!r} is no {kind}"
        return
    if "regex" in rules and not re.search(rules["regex"], value):
        yield f"{where}: {value!r} is no {kind}"
    if "max_len" in rules and len(value) > rules["max_len"]:
        yield f"{where}: longer than {rules['max_len']}"
    if "range" in rules and not rules["range"][0] <= value <= rules["range"][1]:
        yield f"{where}: {value} is out of range"
    if "enum" in attribute and str(value) not in attribute["enum"]:
        yield f"{where}: {value} is not in the enumeration"
