"""The house holds its own lines: who imports whom, what pure rooms may use, and calls that nobody may make.

Read from the source as AST; nothing is imported. Every gate is also shown a small bad sample and must refuse it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import edgeguard

HOUSE = Path(edgeguard.__file__).parent

# A room may import itself, what is below it, and nothing else of ours.
GROUND = {"edgeguard", "errors", "model", "settings", "redact", "linux", "codec"}
MAY_IMPORT: dict[str, set[str]] = {
    "edgeguard": set(),
    "errors": {"edgeguard"},
    "typing_names": {"edgeguard"},
    "model": {"edgeguard"},
    "settings": {"edgeguard", "errors"},
    "redact": {"edgeguard", "errors", "model"},
    "identity": {"edgeguard", "errors", "settings", "linux", "codec"},
    "linux": {"edgeguard", "errors", "model"},
    "codec": {"edgeguard", "errors", "model"},
    "codes": {"edgeguard", "errors", "model", "codec"},
    "sensors": GROUND,
    "baseline": GROUND | {"identity"},
    "remediations": GROUND,
    "records": GROUND | {"codes", "identity"},
    "upgrades": GROUND | {"sensors"},
    "evaluate": GROUND | {"baseline", "codes"},
    "control": {"edgeguard", "errors", "model", "settings", "linux"},
    "control_server": {"edgeguard", "errors", "model", "settings", "linux", "control"},
    "cli": {"edgeguard", "errors", "model", "settings", "control", "codes", "codec"},
    "collector": GROUND | {"records", "codes"},
    "daemon": GROUND
    | {
        "sensors",
        "baseline",
        "remediations",
        "records",
        "evaluate",
        "upgrades",
        "control",
        "control_server",
        "codes",
        "cli",
    },
}
# Verbs that work without the daemon, and the codec they need for it, reach down by an import inside a function.
LAZILY = {"cli": {"baseline", "codec", "evaluate", "identity", "records", "linux", "sensors"}}
# Of the command line, others may take only what turns values into text: it opens nothing.
OF_CLI = {"edgeguard.cli.text", "edgeguard.cli.jsonform", "edgeguard.cli.render"}

PURE = (
    "model.py",
    "evaluate/*.py",
    "baseline/policy.py",
    "baseline/document.py",
    "codec/cbor.py",
    "records/registry.py",
    "records/wire.py",
    "records/epoch.py",
    "records/certify.py",
    "records/defects.py",
    "records/examine.py",
    "records/chain.py",
    "records/allowance.py",
    "records/confirmed.py",
    "records/clock.py",
    "codec/tpm.py",
    "records/mqttwire.py",
    "cli/render.py",
    "cli/text.py",
    "cli/jsonform.py",
)
NOT_PURE = {"os", "time", "socket", "random", "secrets", "select", "subprocess", "threading", "io", "tempfile", "sys"}
WORLDLY_CALLS = {"open", "input", "print"}

RESIDENT_NEVER = {"asyncio", "logging", "ssl", "sqlite3", "argparse", "pathlib", "tomllib", "http", "urllib", "email"}

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "builtins.eval"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "yaml"}
CRYPTOGRAPHY = ("codec/cose.py", "codec/encrypt.py", "codec/certificates.py")
RUN_TIME = {"psutil", "pyudev", "systemd", "cryptography", "cbor2"}
OPTIONAL = {"paho": "records/mqttclient.py"}  # where it is asked for and nowhere else, inside a function


class Import:
    """One import of one module, where it stands, and whether it waits inside a function."""

    def __init__(self, module: str, line: int, lazy: bool) -> None:
        self.module = module
        self.line = line
        self.lazy = lazy


@cache
def imports(tree: ast.AST) -> tuple[Import, ...]:
    return tuple(_imports(tree))


def _imports(tree: ast.AST) -> Iterator[Import]:
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        waits = id(node) in lazy or id(node) in typing_only
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, waits)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = f"edgeguard.{base}".rstrip(".")
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, waits)


def room_of(path: Path) -> str:
    part = path.relative_to(HOUSE).parts[0].removesuffix(".py")
    return "edgeguard" if part == "__init__" else part


def room_named(module: str) -> str:
    parts = module.split(".")
    known = len(parts) > 1 and (parts[1] in MAY_IMPORT or (HOUSE / parts[1]).is_dir())
    return parts[1] if known else "edgeguard"


def directions(room: str, tree: ast.AST) -> Iterator[str]:
    """Imports that point upwards or sideways."""
    allowed = MAY_IMPORT.get(room)
    if allowed is None:
        yield f"room {room!r} is not in the table of rooms"
        return
    for found in imports(tree):
        if found.module.split(".")[0] != "edgeguard":
            continue
        target = room_named(found.module)
        if target in allowed | {room} or (found.lazy and target in LAZILY.get(room, set())):
            if target == "cli" and room != "cli" and ".".join(found.module.split(".")[:3]) not in OF_CLI:
                yield f"line {found.line}: {room} imports {found.module}"
            continue
        if target == "cli" and ".".join(found.module.split(".")[:3]) in OF_CLI and room == "control_server":
            continue
        yield f"line {found.line}: {room} imports {found.module}"


def impurities(tree: ast.AST) -> Iterator[str]:
    for found in imports(tree):
        top = found.module.split(".")[0]
        if top in NOT_PURE or found.module.startswith(("edgeguard.linux", "edgeguard.daemon")):
            yield f"line {found.line}: imports {found.module}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in WORLDLY_CALLS:
            yield f"line {node.lineno}: calls {node.func.id}"


def forbidden(tree: ast.AST) -> Iterator[str]:
    for found in imports(tree):
        if found.module.split(".")[0] in FORBIDDEN_MODULES or found.module in FORBIDDEN_CALLS:  # from os import system
            yield f"line {found.line}: imports {found.module}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in FORBIDDEN_CALLS:
            yield f"line {node.lineno}: calls {name}"
        for keyword in node.keywords:
            shell = keyword.arg == "shell" and not (
                isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            )
            if shell:
                yield f"line {node.lineno}: shell="


def catch_alls(tree: ast.AST, lines: list[str]) -> Iterator[str]:
    """`except:` and `except Exception` without a comment that says why this is the one place.

    Cleaning up and raising again catches nothing.
    """
    for node in ast.walk(tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = "" if node.type is None else ast.unparse(node.type)
        wide = caught in ("", "Exception", "BaseException")
        near = "".join(lines[max(0, node.lineno - 3) : node.lineno + 1])
        again = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
        if wide and not again and "#" not in near:
            yield f"line {node.lineno}: except {caught or 'everything'} without a reason"


def keepers(path: Path, tree: ast.AST) -> Iterator[str]:
    """One file signs, one encrypts, one keeps ssl; what is resident loads nothing heavy with the module."""
    where = path.relative_to(HOUSE).as_posix()
    collector = where.startswith("collector/")
    for found in imports(tree):
        top = found.module.split(".")[0]
        if top == "cryptography" and where not in CRYPTOGRAPHY and not collector:
            yield f"line {found.line}: only {' and '.join(CRYPTOGRAPHY)} import cryptography"
        if top == "cryptography" and where in CRYPTOGRAPHY and not found.lazy:
            yield f"line {found.line}: cryptography is 15 MB, import it inside the function"
        if top == "ssl" and where != "records/link.py" and not collector:
            yield f"line {found.line}: only records/link.py imports ssl"


def optional(path: Path, tree: ast.AST) -> Iterator[str]:
    """What need not be installed has one keeper, who loads it when it is needed."""
    where = path.relative_to(HOUSE).as_posix()
    for found in imports(tree):
        keeper = OPTIONAL.get(found.module.split(".")[0])
        if keeper is not None and (where != keeper or not found.lazy):
            yield f"line {found.line}: only {keeper} imports {found.module}, inside a function"


def heavy(tree: ast.AST) -> Iterator[str]:
    for found in imports(tree):
        if found.module.split(".")[0] in RESIDENT_NEVER and not found.lazy:
            yield f"line {found.line}: {found.module} with the module"


def strangers(tree: ast.AST, standard: frozenset[str]) -> Iterator[str]:
    """Imports that are neither the standard library nor one of the five packages that both Debians ship."""
    for found in imports(tree):
        top = found.module.split(".")[0]
        if top not in standard | RUN_TIME | OPTIONAL.keys() | {"edgeguard", "__future__"}:
            yield f"line {found.line}: {found.module}"


def files(*patterns: str) -> list[Path]:
    return sorted({path for pattern in patterns for path in HOUSE.glob(pattern) if "__pycache__" not in path.parts})


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes(), str(path))


def complaints(found: dict[Path, list[str]]) -> str:
    return "\n".join(f"{path.relative_to(HOUSE.parent)}: {line}" for path, lines in found.items() for line in lines)


ALL = files("**/*.py")
# Short-lived programs and the other machine may load what they need.
NOT_RESIDENT = ("collector/", "cli/", "records/link.py", "records/seal.py", "codec/cose.py", "baseline/")
NOT_RESIDENT_FILES = ("helper", "sweep", "learn", "__main__", "act", "server")


def is_resident(path: Path) -> bool:
    where = path.relative_to(HOUSE).as_posix()
    return not where.startswith(NOT_RESIDENT) and not any(name in path.stem for name in NOT_RESIDENT_FILES)


def test_imports_point_downwards() -> None:
    assert complaints({path: list(directions(room_of(path), parsed(path))) for path in ALL}) == ""


def test_the_daemon_is_imported_by_nobody() -> None:
    for path in ALL:
        if room_of(path) != "daemon":
            assert not [found.module for found in imports(parsed(path)) if room_named(found.module) == "daemon"], path


def test_pure_rooms_open_nothing_and_ask_no_time() -> None:
    found = files(*PURE)
    assert len(found) >= 5
    assert complaints({path: list(impurities(parsed(path))) for path in found}) == ""


def test_no_call_turns_data_into_code() -> None:
    assert complaints({path: list(forbidden(parsed(path))) for path in ALL}) == ""


def test_what_is_heavy_has_one_keeper() -> None:
    assert complaints({path: list(keepers(path, parsed(path))) for path in ALL}) == ""


def test_what_is_optional_has_one_keeper() -> None:
    assert complaints({path: list(optional(path, parsed(path))) for path in ALL}) == ""


def test_the_resident_part_loads_nothing_heavy() -> None:
    assert complaints({path: list(heavy(parsed(path))) for path in ALL if is_resident(path)}) == ""


def test_only_what_both_debians_ship() -> None:
    import sys

    device = [path for path in ALL if room_of(path) != "collector"]
    assert complaints({path: list(strangers(parsed(path), sys.stdlib_module_names)) for path in device}) == ""


def test_a_catch_all_says_why() -> None:
    found = {path: list(catch_alls(parsed(path), path.read_text().splitlines(keepends=True))) for path in ALL}
    assert complaints(found) == ""


def test_every_file_says_what_lives_in_it() -> None:
    silent = [str(path) for path in ALL if not ast.get_docstring(parsed(path)) and path.read_text().strip()]
    assert silent == []


def test_no_import_cycle() -> None:
    """Among modules, by what is imported when a module is loaded."""
    modules = {".".join(path.relative_to(HOUSE.parent).with_suffix("").parts): path for path in ALL}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        targets = set()
        for found in imports(parsed(path)):
            module = found.module if found.module in modules else found.module.rpartition(".")[0]
            if not found.lazy and module in modules and module != name:
                targets.add(module)
        graph[name] = targets
    assert list(cycles(graph)) == []


def cycles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> Iterator[list[str]]:
        if name in trail:
            yield [*trail[trail.index(name) :], name]
        elif name not in done:
            for target in sorted(graph.get(name, ())):
                yield from walk(target, [*trail, name])
            done.add(name)

    for name in sorted(graph):
        yield from walk(name, [])


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("sensors", "from edgeguard.baseline import policy"),
        ("sensors", "import edgeguard.records.spool"),
        ("linux", "from edgeguard.sensors import Context"),
        ("baseline", "def f():\n    from edgeguard.remediations import plan"),
        ("records", "from edgeguard import evaluate"),
        ("evaluate", "from edgeguard.daemon.loop import Loop"),
        ("cli", "from edgeguard.baseline import policy"),
        ("cli", "def f():\n    from edgeguard.daemon import main"),
        ("daemon", "from edgeguard.cli.status import run"),
        ("attic", "import os"),
    ],
)
def test_gate_refuses_a_wrong_direction(room: str, source: str) -> None:
    assert list(directions(room, ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    ["import os", "from time import monotonic", "def f():\n    import random", "open('x')", "import edgeguard.linux"],
)
def test_gate_refuses_the_world_in_a_pure_room(source: str) -> None:
    assert list(impurities(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from marshal import loads",
        "eval('1')",
        "exec(text)",
        "import os\nos.system('ls')",
        "from os import system",
        "subprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=flag)",
        "import yaml\nyaml.load(x)",
    ],
)
def test_gate_refuses_data_as_code(source: str) -> None:
    assert list(forbidden(ast.parse(source)))


def test_gate_refuses_other_keepers() -> None:
    assert list(keepers(HOUSE / "records/seal.py", ast.parse("def f():\n    import cryptography.hazmat")))
    assert list(keepers(HOUSE / "codec/cose.py", ast.parse("import cryptography")))
    assert list(keepers(HOUSE / "daemon/main.py", ast.parse("import ssl")))
    assert not list(keepers(HOUSE / "records/link.py", ast.parse("import ssl")))
    assert list(optional(HOUSE / "records/mqttlink.py", ast.parse("def f():\n    import paho.mqtt.client")))
    assert list(optional(HOUSE / "records/mqttclient.py", ast.parse("import paho.mqtt.client")))
    assert not list(optional(HOUSE / "records/mqttclient.py", ast.parse("def f():\n    import paho.mqtt.client")))
    assert list(heavy(ast.parse("import asyncio")))
    assert not list(heavy(ast.parse("def f():\n    import tomllib")))
    assert list(strangers(ast.parse("import requests"), frozenset({"os"})))


def test_gate_refuses_catch_alls_and_cycles() -> None:
    source = "try:\n    f()\nexcept Exception:\n    pass\n"
    assert list(catch_alls(ast.parse(source), source.splitlines(keepends=True)))
    source = "try:\n    f()\nexcept BaseException:\n    g()\n    raise\n"
    assert not list(catch_alls(ast.parse(source), source.splitlines(keepends=True)))
    assert list(cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}}))
    assert not list(cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}))
