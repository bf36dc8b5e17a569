"""Where a path leads inside another root directory: a mounted image, an unpacked root.

A symlink there means what it would mean to a system that runs from that directory: an absolute one begins at that
root, and `..` stops at it. open(2) knows nothing of this, so an image with `/etc/passwd -> /home/me/secret` would make
us read this machine's file. openat2(2) with RESOLVE_IN_ROOT does, but Python has no call for it. What is followed here
can be exchanged before it is opened; an image that is being looked at must not be written to meanwhile.
"""

from __future__ import annotations

import errno
import os

LINKS_MAX = 40  # symlinks followed for one path: MAXSYMLINKS of the kernel


def inside(root: str, path: str) -> str:
    """The place of the absolute `path` when `root` is the root directory, with every symlink followed.

    What is not there is only joined. Raises OSError: ELOOP for symlinks in a circle.
    """
    return _resolved(root, path, last=True)


def parent_inside(root: str, path: str) -> str:
    """The same with the last component left as it is: it may be the symlink that is asked about."""
    return _resolved(root, path, last=False)


def _resolved(root: str, path: str, *, last: bool) -> str:
    top = root.rstrip("/")
    todo = path.split("/")[::-1]  # the next component comes last
    done: list[str] = []
    links = 0
    while todo:
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            if done:
                done.pop()
            continue
        target = _target("/".join((top, *done, name))) if last or any(todo) else ""
        if not target:
            done.append(name)
            continue
        links += 1
        if links > LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if target.startswith("/"):
            done.clear()
        todo += target.split("/")[::-1]
    return "/".join((top, *done)) or "/"


def _target(full: str) -> str:
    """Where a symlink leads; "" for all else, also for what is not there or cannot be looked at: opening it says so."""
    try:
        return os.readlink(full)
    except OSError:
        return ""
