#!/usr/bin/python3
"""Makes docs/record-types.md, the types of records and their fields, from edgeguard/records/registry.py."""

from __future__ import annotations

import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP))

from edgeguard.records import registry  # noqa: E402 - found by the line above
from edgeguard.records.registry import ACTOR_FIELDS, Field, Kind  # noqa: E402

PAGE = TOP / "docs/record-types.md"
KINDS = {
    Kind.REF: "text",
    Kind.REFS: "list of texts",
    Kind.UINT: "number from 0 on",
    Kind.INT: "number",
    Kind.BOOL: "true or false",
    Kind.DIGEST: "digest, bytes",
    Kind.ENUM: "one of",
    Kind.COLUMNS: "columns",
    Kind.ACTOR: "actor",
    Kind.COUNTER: "counter",
    Kind.BYTES: "bytes",
}
HEAD = """# Types of records

Made by `packaging/tools/records_page.py` from `edgeguard/records/registry.py`; a test compares. How they become bytes
is in [wire-format.md](wire-format.md), the grammar in [segment.cddl](segment.cddl). Fields stand in rows in this order;
any may be null, and trailing nulls are cut. Types and fields are only added, a number keeps its meaning.
"""


def _field(field: Field) -> str:
    members = ": " + ", ".join(f"{place} {name}" for place, name in enumerate(field.names)) if field.names else ""
    return f"| `{field.name}` | {KINDS[field.kind]}{members} |"


def page() -> str:
    parts = [HEAD]
    for kind in registry.TYPES.values():
        parts.append(f"## {kind.number} {kind.name}\n\n{kind.about[0].upper()}{kind.about[1:]}.\n")
        parts.append("\n".join(("| field | |", "|---|---|", *map(_field, kind.fields))) + "\n")
    parts.append(
        "## Actor\n\nWho did it: an array of these; `parents` are pairs of number and program, nearest first.\n"
    )
    parts.append("\n".join(("| field | |", "|---|---|", *map(_field, ACTOR_FIELDS))) + "\n")
    names = ", ".join(f"{place} {name}" for place, name in enumerate(registry.COLUMN_NAMES))
    parts.append(f"## Columns\n\nNames by number; others are written out.\n\n{names}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
