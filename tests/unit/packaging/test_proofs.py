"""docs/proofs.md is made from the tests and is current; levels and marks of tomorrow appear by themselves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(TOP / "packaging/tools"))
import proofs  # noqa: E402 - a tool that is no package


def test_the_page_is_current() -> None:
    assert (TOP / proofs.PAGE).read_text() == proofs.page(TOP), "run: python3 packaging/tools/proofs.py"


def test_every_test_file_says_what_it_proves() -> None:
    silent = [f"{proof.level}/{proof.area}/{proof.name}" for proof in proofs.proofs(TOP) if not proof.sentence]
    assert silent == []


def test_every_mark_is_described() -> None:
    used = {mark for proof in proofs.proofs(TOP) for mark in proof.marks}
    assert used <= proofs.known_marks(TOP).keys()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source tree with a level and a mark that nobody has heard of."""
    files = {
        "pyproject.toml": '[tool.pytest.ini_options]\nmarkers = ["emulated: needs | an emulator", "root: it"]\n',
        "tests/power/conftest.py": '"""Power is cut here. More."""\n',
        "tests/power/test_cut.py": '"""Nothing acknowledged is lost: `x` or y. Second."""\n'
        "import pytest\npytestmark = [pytest.mark.emulated, pytest.mark.root]\n",
        "tests/unit/area/deep/test_a.py": '"""A holds."""\n@pytest.mark.parametrize("x", [1])\ndef test(x): ...\n',
        "tests/vectors/test_not.py": '"""No level."""\n',
        "tests/test_top.py": '"""No level either."""\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_what_is_new_is_listed(tree: Path) -> None:
    page = proofs.page(tree)
    assert "| `emulated` | needs \\| an emulator |" in page
    assert "## tests/power\n\nPower is cut here.\n" in page
    assert "|  | Nothing acknowledged is lost: `x` or y. | test_cut.py | `emulated`, `root` |" in page
    assert "| area/deep | A holds. | test_a.py |  |" in page
    assert "No level" not in page
    assert page.index("## Anywhere") < page.index("## tests/power"), "known levels first"
