"""Python modules, compiled as Debian's py3compile does it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence

from edgeguard.codec.digests import Digester

COMPILE_S = 600  # a thousand modules on a slow board


def compiled(
    python: str, sources: Sequence[bytes], optimize: int, scratch: str, digester: Digester
) -> dict[bytes, bytes]:
    """What py3compile makes of modules, as digests by source: the same program with the same options, elsewhere.

    Nothing of a source is run: it is compiled, and that is all.
    """
    found: dict[bytes, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="compiled-", dir=scratch) as folder:
        words = [python, "-E", "-S", *(["-" + "O" * optimize] if optimize else []), "-X", f"pycache_prefix={folder}"]
        try:
            subprocess.run(
                [*words, "-m", "py_compile", "-"],
                input=b"\n".join(sources) + b"\n",
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
                timeout=COMPILE_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return found
        for above, _, names in os.walk(os.fsencode(folder)):
            for name in names:
                source = above[len(folder) :] + b"/" + name.partition(b".cpython-")[0] + b".py"
                with open(above + b"/" + name, "rb") as file:
                    found[source] = digester.digest(file.read())
    return found
