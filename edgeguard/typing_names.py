"""The names of `typing` that run-time code of ours asks for, without the module behind them.

`typing` takes 500 kB of private memory and 5 ms of CPU time at each start, most of it for what only annotations need,
and those are never evaluated here. `install` puts this module in its place, before anything of ours is imported. Who
asks it for anything else gets the real module: from then on it is loaded, and right for everybody.
"""

from __future__ import annotations

import sys
from collections import namedtuple
from collections.abc import Callable  # noqa: F401 - asked for by its old name, as the next three
from importlib import import_module
from types import new_class

TYPE_CHECKING = False
Dict, List, Tuple = dict, list, tuple

_OWN = {"__module__", "__qualname__", "__annotations__", "__orig_bases__", "__classcell__"}


class _Name:
    """A name in a signature that nobody looks up."""

    def __class_getitem__(cls, item: object) -> type:
        return cls


class Any(_Name): ...


class BinaryIO(_Name): ...


class IO(_Name): ...


class NoReturn(_Name): ...


class Self(_Name): ...


def cast(_type: object, value: object) -> object:
    return value


class _Made(type):
    """What a class statement with NamedTuple as its base is made by: a named tuple, and what else is in its body."""

    def __new__(mcs, name: str, _bases: tuple[type, ...], body: dict[str, object]) -> type:
        fields = body.get("__annotations__")
        if not isinstance(fields, dict):  # none, or a Python that finds annotations in another way
            return new_class(name, (_whole("NamedTuple"),), exec_body=lambda space: space.update(body))
        values = [body[field] for field in fields if field in body]
        made = namedtuple(name, fields, defaults=values, module=str(body["__module__"]))  # type: ignore[misc]  # noqa: PYI024
        made.__annotations__ = fields
        for key, value in body.items():
            if key not in _OWN and key not in fields:
                setattr(made, key, value)
        return made


class _Structure(type):
    """What a class statement with Protocol as its base is made by. Ours are for a type checker to see; those of others
    may be asked for at run time."""

    def __new__(mcs, name: str, _bases: tuple[type, ...], body: dict[str, object]) -> type:
        if str(body["__module__"]).startswith("edgeguard."):
            return type(name, (), body)
        return new_class(name, (_whole("Protocol"),), exec_body=lambda space: space.update(body))


class _Protocol:
    """Not a class either."""

    def __getitem__(self, item: object) -> object:
        return _whole("Protocol")[item]  # type: ignore[index]

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        return (_structure if len(bases) == 1 else _whole("Protocol"),)  # type: ignore[return-value]


class _NamedTuple:
    """Not a class: what it is replaced by, as a base, makes another one."""

    def __call__(self, *fields: object, **more: object) -> object:
        return _whole("NamedTuple")(*fields, **more)  # type: ignore[operator]

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        if len(bases) > 1:
            whole = _whole("NamedTuple")
            made: tuple[type, ...] = whole.__mro_entries__(tuple(whole if base is self else base for base in bases))  # type: ignore[attr-defined]
            return made
        return (_base,)


_base = type.__new__(_Made, "NamedTuple", (), {})
NamedTuple = _NamedTuple()
_structure = type.__new__(_Structure, "Protocol", (), {})
Protocol = _Protocol()


def __getattr__(name: str) -> object:
    if name.startswith("__"):  # what the import system looks for
        raise AttributeError(name)
    return _whole(name)


def _whole(name: str) -> object:
    """A name of the real module."""
    if sys.modules.get("typing") is sys.modules[__name__]:
        del sys.modules["typing"]
    return getattr(import_module("typing"), name)


def install() -> None:
    """Stand in for `typing`, if that is not loaded yet."""
    sys.modules.setdefault("typing", sys.modules[__name__])
