"""What the script that runs after a package went takes away besides: settings, units and jobs that another script of
it had made, and that no list of files names. Pure, and no shell: only what stands there in plain words is understood.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

SCRIPT_MAX = 1 << 16  # bytes; the largest of Debian 13 has 20 KB
PATHS_MAX = 1000  # of one script
LINE_MAX = 4096  # bytes of a line with its variables written out
_ASSIGNED = re.compile(
    rb"\s*(?:export\s+|local\s+|readonly\s+)?([A-Za-z_]\w*)="
    rb"(\"[^\"`\\]*\"|'[^']*'|[^\s\"'`;&|()\\]*)\s*"
)
_VARIABLE = re.compile(rb"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")
_REMOVES = re.compile(rb"(?<![\w./-])(?:/bin/|/usr/bin/)?(?:rm|rmdir|unlink|ucf)(?=\s)")
_PATH = re.compile(rb"(?<![\w./*?\[\]{}$-])/[\w.+@:/-]+(?![\w.+@:/*?\[\]{}$-])")


def removed(script: bytes) -> list[bytes]:
    """The paths that the script names whole where it removes something (rm, ucf --purge), simple variables written
    out. Patterns are left out. [] for a script that is too large."""
    found: dict[bytes, None] = {}
    for line in written(script):
        if (removes := _REMOVES.search(line)) is not None:
            names = (match[0].rstrip(b"/") for match in _PATH.finditer(line, removes.end()))
            found.update(dict.fromkeys(name for name in names if _whole(name)))
        if len(found) >= PATHS_MAX:
            break
    return list(found)[:PATHS_MAX]


def written(script: bytes) -> Iterator[bytes]:
    """The lines of a script that are no remarks and no assignments, simple variables written out. None for a script
    that is too large."""
    if len(script) > SCRIPT_MAX:
        return
    values: dict[bytes, bytes] = {}
    for line in script.replace(b"\\\n", b" ").split(b"\n"):
        if line.lstrip().startswith(b"#"):
            continue
        whole = _written(line, values)
        if (assigned := _ASSIGNED.fullmatch(whole)) is not None:
            values[assigned[1]] = assigned[2].strip(b"\"'")
        else:
            yield whole


def _whole(path: bytes) -> bool:
    return not path.startswith(b"/dev/") and not {b"", b".", b".."} & set(path[1:].split(b"/"))


def _written(line: bytes, values: dict[bytes, bytes]) -> bytes:
    """With the variables that are known; one that is not stays, and with it the path is none."""
    if len(line) > LINE_MAX:
        return b""
    written = _VARIABLE.sub(lambda match: values.get(match[1] or match[2], match[0]), line)
    return written if len(written) <= LINE_MAX else b""
