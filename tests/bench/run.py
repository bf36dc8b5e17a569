#!/usr/bin/python3
"""Runs every tests/bench/bench_*.py (or those named) and prints one table.

A bench is a script of its own. For each figure it prints one JSON line: `name`, `value`, `unit`, and where they
exist `reference` (what the figure is compared with, measured in the same run) and `bar` (the most that is allowed).
Other lines are passed on as remarks; exit code 77 means that it cannot run here and the last line says why.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 900  # of one bench; the longest learns 100,000 files


def figure(line: str) -> dict[str, Any] | None:
    """The figure in a line, None for a remark."""
    if not line.startswith("{"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "name" in row and "value" in row else None


def number(value: object) -> str:
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:,.3g}"
    return f"{value:,}" if isinstance(value, (int, float)) else str(value or "")


def verdict(row: dict[str, Any]) -> str:
    bar = row.get("bar")
    if not isinstance(bar, (int, float)):
        return ""
    return "ok" if row["value"] <= bar else "OVER"


def main(names: list[str]) -> int:
    scripts = [HERE / name for name in names] if names else sorted(HERE.glob("bench_*.py"))
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    failed = 0
    print(f"{'figure':<52} {'value':>12} {'unit':<10} {'bar':>9}  {'':<5} reference")
    for script in scripts:
        command = ["/usr/bin/python3", str(script)]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            print(f"{script.name}: no end within {TIMEOUT_S} s")
            failed += 1
            continue
        for line in done.stdout.splitlines():
            row = figure(line)
            if row is None:
                print(f"  {line}")
                continue
            state = verdict(row)
            failed += state == "OVER"
            print(
                f"{row['name']:<52} {number(row['value']):>12} {row.get('unit', ''):<10} "
                f"{number(row.get('bar')):>9}  {state:<5} {number(row.get('reference'))}"
            )
        if done.returncode not in (0, 77):
            failed += 1
            print(f"{script.name}: exit {done.returncode}\n{done.stderr[-1500:]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
