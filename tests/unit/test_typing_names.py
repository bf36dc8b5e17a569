"""What stands in for `typing` does for all of ours, and gives way to the real one for everybody else."""

import subprocess
from pathlib import Path

import edgeguard

TREE = Path(edgeguard.__file__).parents[1]
BEGIN = """
import sys
sys.path[:0] = [{tree!r}]
sys.path.append("/usr/lib/python3/dist-packages")
from edgeguard import typing_names
typing_names.install()
def stands():
    return sys.modules.get("typing") is typing_names
"""


def said(text):
    code = BEGIN.format(tree=str(TREE)) + text
    done = subprocess.run(
        ["/usr/bin/python3", "-IS", "-B", "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert not done.returncode, done.stderr
    return done.stdout.split()


def test_the_daemon_and_an_unchanged_sweep_load_no_typing():
    text = """
import edgeguard.daemon.main, edgeguard.daemon.helper, edgeguard.daemon.sweeping
from edgeguard import settings
from edgeguard.sensors import TABLE, sensor_class
for name in TABLE:
    sensor_class(name)
settings.parse(b'name = "x"')
print(stands(), "_typing" in sys.modules)
"""
    assert said(text) == ["True", "False"]


def test_the_launchers_put_it_in_place():
    for name in ("edgeguardd", "edgeguard-helper"):
        text = (TREE / "packaging/bin" / name).read_text()
        assert text.index("typing_names.install()") < text.rindex("import main as run")


def test_a_named_tuple_is_what_it_is_elsewhere():
    text = """
from typing import NamedTuple
class Point(NamedTuple):
    x: int
    y: int = 2
    def sum(self): return self.x + self.y
    @property
    def both(self): return self.x, self.y
    @classmethod
    def zero(cls): return cls(0, 0)
print(Point(1) == (1, 2), Point(y=1, x=3).sum(), Point(1).both == (1, 2), Point.zero()._replace(x=5).x, stands())
print(Point.__name__, Point.__module__, Point._fields == ("x", "y"), Point.__annotations__["y"], repr(Point(7)))
try:
    Point()
except TypeError:
    print("TypeError")
"""
    assert " ".join(said(text)) == ("True 4 True 5 True Point __main__ True <class 'int'> Point(x=7, y=2) TypeError")


def test_who_asks_for_more_gets_the_real_one():
    text = """
import typing
print(stands())
print(typing.Optional[int] == (int | None), stands())
import dataclasses
@dataclasses.dataclass
class Here:
    kept: typing.ClassVar[int] = 1
    own: "typing.Any" = 2
print(len(dataclasses.fields(Here)))
T = typing.TypeVar("T")
class Some(typing.Generic[T]): ...
print(Some[int].__args__ == (int,))
Pair = typing_names.NamedTuple("Pair", [("x", int)])
print(Pair(1).x)
class Late(typing_names.NamedTuple, typing.Generic[T]):
    x: int
print(Late(3).x)
class Nothing(typing_names.NamedTuple): ...
print(Nothing() == ())
@typing.runtime_checkable
class Closes(typing_names.Protocol):
    def close(self): ...
print(isinstance(open("/dev/null"), Closes), isinstance(1, Closes))
import typing as now
print(now is not typing_names and now.NamedTuple is not typing_names.NamedTuple)
"""
    assert said(text) == ["True", "True", "False", "1", "True", "1", "3", "True", "True", "False", "True"]


def test_libraries_that_annotate_find_what_they_need():
    text = """
from edgeguard.codec import cose
print(cose.__name__)
"""
    assert said(text) == ["edgeguard.codec.cose"]


def test_it_comes_too_late_where_typing_is_loaded_already():
    text = """
import typing
del sys.modules["typing"]
import importlib
real = importlib.import_module("typing")
typing_names.install()
print(sys.modules["typing"] is real)
"""
    assert said(text) == ["True"]
