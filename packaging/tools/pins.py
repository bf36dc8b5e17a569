#!/usr/bin/python3
"""Prints the requirements of pyproject.toml's extra `dev` whose names are given: the one place for versions."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def main(names: list[str]) -> int:
    document = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())
    pins = {re.split(r"[<>=!~ ]", pin)[0]: pin for pin in document["project"]["optional-dependencies"]["dev"]}
    print(*(pins[name] for name in names))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
