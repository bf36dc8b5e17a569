"""The table is append-only; what has been given out stays as it is."""

import sys
from pathlib import Path

from edgeguard.records import registry

ROOT = Path(__file__).parents[3]

GIVEN = {
    1: ("exec", ("exe", "argv", "pid", "ppid", "uid", "user", "login_uid", "tty", "unit", "exe_state")),
    2: ("file", ("action", "path", "columns", "origin", "actor", "note")),
    3: ("listener", ("action", "protocol", "address", "port", "scope", "pid", "exe", "uid", "user", "unit")),
    4: ("connection", ("action", "protocol", "local_address", "local_port", "remote_address", "remote_port")),
    5: ("login", ("result", "service", "user", "tty", "address", "port", "pid", "method")),
    6: ("usb", ("action", "vendor", "product", "serial", "manufacturer", "name", "interfaces", "port")),
    7: ("metric", ("cpu_ms", "rss_kib", "received_bytes", "sent_bytes", "processes", "listening")),
    8: ("finding", ("transition", "code", "id", "kind", "subject", "state", "outcome", "origin", "count", "age_ms")),
    9: ("state", ("what", "text", "columns", "subject", "finding")),
    10: ("drop", ("stream", "first", "last", "reason", "count", "name")),
    11: ("attest", ("token",)),
    12: ("fact", ("kind", "subject", "status", "columns", "origin", "actor", "note")),
    13: ("upgrade", ("package", "architecture", "before", "after", "vouched", "sha256", "signed", "other", "kept")),
    15: ("text", ("text", "cut")),
}


def test_numbers_and_fields_once_given_stay():
    for number, (name, fields) in GIVEN.items():
        assert registry.TYPES[number].name == name
        assert registry.field_names(number)[: len(fields)] == fields
    assert registry.COLUMN_NAMES[:6] == ("type", "sha256", "size", "mode", "uid", "gid")
    assert registry.STATES[:3] == ("boot", "start", "stop")
    assert registry.REASONS[1] == "damaged"


def test_every_name_is_there_once():
    assert len(set(registry.COLUMN_NAMES)) == len(registry.COLUMN_NAMES)
    assert len({kind.name for kind in registry.TYPES.values()}) == len(registry.TYPES)
    for kind in registry.TYPES.values():
        assert len({field.name for field in kind.fields}) == len(kind.fields)
        for field in kind.fields:
            assert len(set(field.names)) == len(field.names)


def test_the_cddl_in_the_documentation_is_the_tables():
    text = (ROOT / "docs" / "segment.cddl").read_text()
    head, mark, generated = text.partition("; --- generated from edgeguard/records/registry.py ---\n")
    assert mark
    assert "segment = #6.18" in head
    assert generated == registry.cddl(), "write registry.cddl() below the mark"


def test_the_page_of_record_types_is_the_tables():
    sys.path.insert(0, str(ROOT / "packaging/tools"))
    import records_page

    assert records_page.PAGE.read_text() == records_page.page(), "run packaging/tools/records_page.py"


def test_the_grammar_names_every_type_as_a_row():
    row = next(line for line in registry.cddl().splitlines() if line.startswith("row = "))
    assert row.split(" = ")[1].split(" / ") == [f"{kind.name}-row" for kind in registry.TYPES.values()] + [
        "unknown-row"
    ]
