"""The table of findings is complete, and what is made from it is what is committed."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess

import pytest

from edgeguard import codes, errors
from edgeguard.model import Severity

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TABLE = codes.load()


def _maker():
    spec = importlib.util.spec_from_file_location("catalog", os.path.join(TREE, "packaging/catalog.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CATALOG = _maker()


@pytest.mark.parametrize("code", TABLE.values(), ids=TABLE.keys())
def test_every_code_tells_why_and_what_to_do(code):
    assert re.fullmatch(r"EG-[A-Z]{2,4}-\d{3}", code.code)
    assert code.severity.upper() in Severity.__members__
    assert 10 < len(code.title) < 110
    assert not code.title.endswith(".")
    for text in (code.rationale, code.fix):
        assert text.endswith(".")
        assert 60 < len(text) < 500
        assert text.isprintable(), "one line, no control characters"
    assert all(re.fullmatch(r"T\d{4}(\.\d{3})?", technique) for technique in code.attack)
    assert all(name.startswith(("CIS ", "ETSI EN 303 645 ", "IEC 62443-4-2 ")) for name in code.references)


def test_message_ids_are_stable_and_different():
    assert codes.message_id("EG-FILE-002") == "4791ec5feb898abd85b15915d46fbbc5", "people's filters hold this value"
    found = {codes.message_id(code) for code in TABLE}
    assert len(found) == len(TABLE)
    assert all(re.fullmatch(r"[0-9a-f]{12}8[0-9a-f]{3}[89ab][0-9a-f]{15}", item) for item in found)


def _subclasses(kind):
    for item in kind.__subclasses__():
        yield item
        yield from _subclasses(item)


def test_every_error_that_is_a_finding_has_its_code_in_the_table():
    named = {item.code for item in _subclasses(errors.EdgeGuardError) if item.code}
    assert named <= set(TABLE), named - set(TABLE)


@pytest.mark.parametrize("name", CATALOG.MADE)
def test_what_is_committed_is_what_the_table_makes(name):
    with open(os.path.join(TREE, name), encoding="utf-8") as file:
        assert file.read() == CATALOG.MADE[name](TABLE), "run: python3 packaging/catalog.py"


@pytest.mark.skipif(not shutil.which("journalctl"), reason="needs systemd's journalctl")
def test_journalctl_takes_the_catalogue(tmp_path):
    directory = tmp_path / "usr/lib/systemd/catalog"
    directory.mkdir(parents=True)
    shutil.copy(os.path.join(TREE, "packaging/edgeguard.catalog"), directory)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    words = ("journalctl", f"--root={tmp_path}")
    subprocess.run((*words, "--update-catalog"), check=True, capture_output=True)
    shown = subprocess.run((*words, "--list-catalog"), check=True, capture_output=True, text=True).stdout
    assert len(shown.splitlines()) == len(TABLE)


@pytest.mark.skipif(not shutil.which("groff"), reason="needs groff")
def test_the_man_page_has_no_warnings():
    page = os.path.join(TREE, "packaging/man/edgeguard-findings.7")
    done = subprocess.run(("groff", "-man", "-Tutf8", "-ww", page), check=True, capture_output=True)
    assert done.stderr == b""
