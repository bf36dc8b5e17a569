"""A line becomes a verb and its parameters, or is refused with the reason. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from edgeguard.control import PREFIX, Parameter, load
from edgeguard.errors import ControlError, DecodeError


def parse(line: bytes) -> tuple[str, dict[str, Any]]:
    """The verb and what was given with it. Raises DecodeError."""
    message = load(line)
    method, given = message.get("method"), message.get("parameters", {})
    if not isinstance(method, str) or not isinstance(given, dict):
        raise DecodeError('expected {"method": text, "parameters": object}')
    if extra := message.keys() - {"method", "parameters", "more"}:
        raise DecodeError(f"unknown key {min(extra)[:80]!r}")
    return method.removeprefix(PREFIX), given


def check_parameters(declared: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a verb with its defaults; what is not declared, or not of its type, is refused."""
    if unknown := given.keys() - declared.keys():
        raise ControlError("InvalidParameter", f"unknown parameter {min(unknown)[:80]!r}")
    checked: dict[str, Any] = {}
    for name, parameter in declared.items():
        value = given.get(name)
        if value is None:
            if parameter.required:
                raise ControlError("InvalidParameter", f"{name} is needed: {parameter.description}")
            checked[name] = parameter.default
        elif _fits(parameter, value):
            checked[name] = value
        else:
            raise ControlError("InvalidParameter", f"{name}: expected {_expected(parameter)}")
    return checked


def _fits(parameter: Parameter, value: Any) -> bool:
    if parameter.type == "bool":
        return isinstance(value, bool)
    if parameter.type == "int":
        return type(value) is int and parameter.low <= value <= parameter.high
    if parameter.type == "strs":
        if not isinstance(value, list) or len(value) > parameter.high:
            return False
        return all(isinstance(item, str) and _is_text(item, 4096) for item in value)
    return isinstance(value, str) and _is_text(value, parameter.high)


def _is_text(value: str, limit: int) -> bool:
    """Short enough, and something that a file system or a terminal can hold: JSON may spell half a character."""
    try:
        return len(value) <= limit and len(os.fsencode(value)) >= 0
    except UnicodeEncodeError:
        return False


def _expected(parameter: Parameter) -> str:
    if parameter.type == "int":
        return f"a whole number from {parameter.low} to {parameter.high}"
    if parameter.type == "strs":
        return f"a list of at most {parameter.high} texts"
    return "true or false" if parameter.type == "bool" else f"a text of at most {parameter.high} characters"
