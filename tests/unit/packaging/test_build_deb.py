"""The package build: what it derives from the tree, and that each package carries all the code that it imports."""

from __future__ import annotations

import ast
import importlib.util
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest

TOP = Path(__file__).resolve().parents[3]
DEBIAN = TOP / "packaging/debian"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_deb", TOP / "packaging/tools/build_deb.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_changelog_becomes_debian(build: ModuleType) -> None:
    text = "# Changelog\n\n## 1.2.3 (2026-11-23)\n\n- one\n  goes on\n- two\n\n## 1.2.2 (2026-01-02)\n\n- old\n"
    entries = build.releases(text)
    assert [entry.version for entry in entries] == ["1.2.3", "1.2.2"]
    assert entries[0].date == datetime(2026, 11, 23, tzinfo=UTC)
    assert entries[0].changes == ["one goes on", "two"]
    debian = build.debian_changelog(entries)
    assert debian.startswith("edgeguard (1.2.3) unstable; urgency=medium\n\n  * one goes on\n  * two\n\n -- ")
    assert "Mon, 23 Nov 2026 00:00:00 +0000" in debian


def test_a_heading_without_a_date_is_refused(build: ModuleType) -> None:
    with pytest.raises(SystemExit, match="VERSION"):
        build.releases("## 1.0\n\n- x\n")


def test_the_changelog_is_at_this_version(build: ModuleType) -> None:
    version = build.releases((TOP / "CHANGELOG.md").read_text())[0].version
    assert f'__version__ = "{version}"' in (TOP / "edgeguard/__init__.py").read_text()


def test_unit_names(build: ModuleType) -> None:
    assert build.debhelper_name("edgeguard.service") == "edgeguard.service"
    assert build.debhelper_name("edgeguard-act.socket") == "edgeguard.edgeguard-act.socket"
    assert build.debhelper_name("edgeguard-collector.service") == "edgeguard-collector.service"
    assert build.debhelper_name("edgeguard-collector.sysusers") == "edgeguard-collector.sysusers"
    worker = "edgeguard-collector-work@.service"
    assert build.debhelper_name(worker) == f"edgeguard-collector.{worker}"


def test_every_unit_goes_into_a_package() -> None:
    """debhelper installs what has a package's name, with --name in the rules, and nothing else."""
    rules = (DEBIAN / "rules").read_text()
    installed = "".join((DEBIAN / f"{package}.install").read_text() for package in ("edgeguard", "edgeguard-collector"))
    for unit in (path.name for path in (TOP / "systemd").iterdir() if path.suffix in {".service", ".socket", ".path"}):
        stem = unit.partition(".")[0]
        named = stem in {"edgeguard", "edgeguard-collector"} or f"--name={stem} " in rules
        assert named != (f"systemd/{unit} usr/lib/systemd/system\n" in installed), unit


def shipped(package: str) -> list[Path]:
    """Python files of the tree that `package` installs."""
    files: list[Path] = []
    for line in (DEBIAN / f"{package}.install").read_text().splitlines():
        source = line.split()[0]
        for path in sorted(TOP.glob(source)):
            files += sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.suffix == ".py" else []
    return [path for path in files if path.is_relative_to(TOP / "edgeguard")]


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("edgeguard")}


def file_of(module: str) -> Path | None:
    path = TOP / module.replace(".", "/")
    if path.is_dir():
        return path / "__init__.py"
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else None


@pytest.mark.parametrize("package", ["edgeguard", "edgeguard-collector"])
def test_a_package_carries_what_it_imports(package: str) -> None:
    files = set(shipped(package))
    assert files
    missing = {
        f"{path.relative_to(TOP)} imports {module}"
        for path in files
        for module in imports(path)
        if (target := file_of(module)) is not None and target not in files
    }
    assert not missing


def test_together_the_packages_carry_the_whole_tree() -> None:
    everything = {path for path in (TOP / "edgeguard").rglob("*.py") if "__pycache__" not in path.parts}
    assert everything == set(shipped("edgeguard")) | set(shipped("edgeguard-collector"))
