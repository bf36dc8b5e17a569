"""One contract for all sensors: what is declared is what is yielded, and no root directory makes one stumble.

Walks `sensors.TABLE`, so a new sensor is held to it by its line there; and walks the files, so that none is forgotten.
"""

from __future__ import annotations

import ast
import inspect
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

import edgeguard.sensors
from edgeguard.errors import Unavailable
from edgeguard.linux import portbell
from edgeguard.model import Observation, Status, Watch
from edgeguard.sensors import TABLE, Column, Context, Rung, Sensor, sensor_class
from tests.fuzz.seeds import present_cache

NOW = int(time.time() * 1000)
DIRECTORY = Path(edgeguard.sensors.__file__).parent
DOCUMENT = DIRECTORY.parents[1] / "docs" / "sensors.md"
TYPES: dict[str, Callable[[object], bool]] = {
    "str": lambda value: isinstance(value, str),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "bool": lambda value: isinstance(value, bool),
    "bytes": lambda value: isinstance(value, bytes),
    "list": lambda value: isinstance(value, tuple) and all(isinstance(item, str) for item in value),
}
PASSWD = "root:x:0:0::/root:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\n"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f bob\n"
SMALL_ROOT = {
    "etc/passwd": PASSWD,
    "etc/shadow": "root:*:1::::::\n",
    "etc/group": "root:x:0:\nsudo:x:27:bob\n",
    "etc/ssh/sshd_config": "PermitRootLogin no\nMatch User bob\nPermitRootLogin yes\n",
    "etc/ld.so.cache": present_cache("/srv/x/libx.so").decode(),
    "home/bob/.ssh/authorized_keys": KEY,
    "var/lib/dpkg/status": "Package: dpkg\nStatus: install ok installed\nArchitecture: arm64\nVersion: 1\n",
    "proc/sys/kernel/kptr_restrict": "1\n",
    "proc/modules": "evil 1 0 - Live 0x0\n",
    "proc/self/mountinfo": "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n",
    "sys/bus/usb/devices/1-1/idVendor": "046d\n",
    "sys/bus/usb/devices/1-1/idProduct": "c31c\n",
}


def sensor_names() -> list[str]:
    return sorted(TABLE)


def exists(name: str) -> bool:
    return (DIRECTORY / f"{TABLE[name].partition(':')[0].rpartition('.')[2]}.py").exists()


def make(name: str, root: str, proof: Path) -> Sensor:
    """As the daemon makes them: `files` gets the watches of the policy and a directory of ours to prove itself in."""
    kind: Any = sensor_class(name)
    if name == "files":
        watches = [Watch("/etc/ssh", "config"), Watch("/home/*/.ssh", "key"), Watch("/nowhere", "other")]
        files: Sensor = kind(Context(root=root), watches, None, str(proof))
        return files
    made: Sensor = kind(Context(root=root))
    return made


@pytest.fixture(autouse=True)
def _leave_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is attached to the cgroups of the machine that runs the tests."""

    def nowhere() -> str:
        raise Unavailable("not in this test")

    monkeypatch.setattr(portbell, "topmost_cgroup", nowhere)


@pytest.fixture
def proof(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("proof")


def breaches(observation: Observation, sensor: Any) -> Iterator[str]:
    """Where an observation is not what its sensor declares."""
    columns = sensor.kinds.get(observation.kind)
    if columns is None:
        yield f"kind {observation.kind!r} is not declared"
        return
    if not observation.subject or len(observation.subject) > 8192:
        yield f"subject {observation.subject!r}"
    for name, value in observation.columns.items():
        if name not in columns:
            yield f"{observation.kind}.{name} is not declared"
        elif value is not None and not TYPES[columns[name].type](value):
            yield f"{observation.kind}.{name}: {value!r} is no {columns[name].type}"
    if observation.status is Status.PRESENT:
        wanted = {name for name, column in columns.items() if column.reference and not column.instead}
        missing = (
            wanted
            - observation.columns.keys()
            - {columns[name].instead for name in observation.columns.keys() & columns}
        )
        if missing:
            yield f"{observation.kind}: reference columns are missing: {', '.join(sorted(missing))}"
    if observation.status is Status.UNREADABLE and not observation.note:
        yield f"{observation.kind} {observation.subject!r}: unreadable without a reason"


def look(sensor: Sensor) -> list[Observation]:
    """Start, look, drain, close: never raises, never waits."""
    rung = sensor.start()
    try:
        assert isinstance(rung, Rung)
        assert rung.name in sensor.ladder
        assert all(better in sensor.ladder and why for better, why in rung.tried)
        seen = [*sensor.observe(NOW), *sensor.ready(NOW)]
        descriptor = sensor.fileno()
        assert descriptor is None or descriptor >= 0
    finally:
        sensor.close()
    return seen


@pytest.mark.parametrize("name", sensor_names())
def test_declaration(name: str) -> None:
    if not exists(name):
        pytest.fail(f"{TABLE[name]} does not exist")
    sensor = sensor_class(name)
    assert sensor.name == name
    assert sensor.ladder
    assert sensor.kinds
    for kind, columns in sensor.kinds.items():
        assert re.fullmatch(r"[a-z_]+", kind)
        for column, declared in columns.items():
            assert re.fullmatch(r"[a-z0-9_]+", column)
            assert declared.type in TYPES, f"{kind}.{column}: {declared.type}"
            assert declared.description
    for member in ("start", "fileno", "ready", "observe", "close"):
        assert callable(getattr(sensor, member))


def test_kinds_have_one_sensor() -> None:
    kinds = [kind for name in sensor_names() if exists(name) for kind in sensor_class(name).kinds]
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize("name", sensor_names())
def test_here(name: str, proof: Path) -> None:
    sensor = make(name, "/", proof)
    assert [line for observation in look(sensor) for line in breaches(observation, sensor)] == []


@pytest.mark.parametrize("name", sensor_names())
def test_on_an_empty_root(name: str, tmp_path: Path, proof: Path) -> None:
    for name_of in ("proc", "sys"):  # an image that is not running has them, empty
        (tmp_path / name_of).mkdir()
    sensor = make(name, str(tmp_path), proof)
    assert [line for observation in look(sensor) for line in breaches(observation, sensor)] == []


@pytest.mark.parametrize("name", sensor_names())
def test_on_a_small_root(name: str, tmp_path: Path, proof: Path) -> None:
    for path, text in SMALL_ROOT.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    sensor = make(name, str(tmp_path), proof)
    seen = look(sensor)
    assert [line for observation in seen for line in breaches(observation, sensor)] == []
    if name in ("usb", "host", "accounts", "packages"):
        assert {observation.kind for observation in seen} == set(sensor.kinds)


@pytest.mark.parametrize("name", sensor_names())
def test_on_a_root_of_the_wrong_types(name: str, tmp_path: Path, proof: Path) -> None:
    """Directories where files should be, and a symlink that leads nowhere or to itself."""
    for number, path in enumerate(SMALL_ROOT):
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if number % 3 == 0:
            place.mkdir()
        elif number % 3 == 1:
            place.symlink_to(place.name)
        else:
            place.write_bytes(bytes(range(256)) * 8)
    sensor = make(name, str(tmp_path), proof)
    assert [line for observation in look(sensor) for line in breaches(observation, sensor)] == []


def test_every_sensor_is_in_the_table() -> None:
    """A class with a ladder and a look is a sensor, whatever it is called."""
    found = set()
    for path in DIRECTORY.glob("*.py"):
        for node in ast.parse(path.read_bytes()).body:
            if not isinstance(node, ast.ClassDef) or path.name == "__init__.py":
                continue
            names = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            if {"start", "observe", "ready"} <= names:
                found.add(f"edgeguard.sensors.{path.stem}:{node.name}")
    assert found == set(TABLE.values())


def test_the_contract_notices_a_liar() -> None:
    class Liar:
        kinds: ClassVar = {"thing": {"size": Column("int", "bytes", reference=True), "name": Column("str", "name")}}

    def told(**columns: Any) -> list[str]:
        return list(breaches(Observation("thing", "x", columns, 1), Liar))

    assert told(size=1, name="a") == []
    assert told(size=None) == []
    assert told(size="1")
    assert told(size=True)
    assert told(name="a")
    assert told(size=1, colour="red")
    assert list(breaches(Observation("other", "x", {}, 1), Liar))
    assert list(breaches(Observation("thing", "x", {}, 1, Status.UNREADABLE), Liar))


def test_the_document_lists_what_is_declared() -> None:
    """docs/sensors.md is compared, not generated: its tables are these lines, in this order."""
    text = DOCUMENT.read_text()
    for name in sensor_names():
        for line in table_of(name):
            assert line in text, f"{name}: docs/sensors.md lacks the line\n{line}"


def table_of(name: str) -> list[str]:
    """`python -c "import test_sensors_contract as t; ..."` prints these when a declaration has changed."""
    sensor = sensor_class(name)
    lines = []
    for kind, columns in sensor.kinds.items():
        for column, declared in columns.items():
            mark = "R" if declared.reference else ""
            lines.append(f"| {kind} | `{column}` | {declared.type} | {mark} | {declared.description} |")
    lines.append(f"Ladder: {' → '.join(sensor.ladder)}")
    return lines


def test_methods_have_the_contract_s_shape() -> None:
    for name in sensor_names():
        found: Any = sensor_class(name)
        for member in ("ready", "observe"):
            parameters = list(inspect.signature(getattr(found, member)).parameters)
            assert parameters == ["self", "now"], f"{name}.{member}"
