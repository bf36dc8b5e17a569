"""pyudev is loaded lean, and nobody else is left with what that took."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
sys.path[:0] = [{tree!r}]
sys.path.append("/usr/lib/python3/dist-packages")
from edgeguard.sensors import usb
pyudev = usb._pyudev()
assert pyudev.Context().sys_path == "/sys"
assert "ctypes.util" not in sys.modules, "the search stays away"
import ctypes.util
assert ctypes.util.find_library("c"), "and whoever wants it gets the real one"
"""


def test_it_works_and_leaves_no_trace() -> None:
    from pathlib import Path

    tree = str(Path(__file__).resolve().parents[3])
    done = subprocess.run(
        [sys.executable, "-I", "-c", CODE.format(tree=tree)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
