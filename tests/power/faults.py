"""Every call with which the product changes a disk, counted; the n-th fails, or is the last thing that the process did.

The functions of `os` and `open` are replaced for the time of a block, so whatever a module does comes by here; a file
object writes through `os.write`, too.
"""

from __future__ import annotations

import builtins
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CALLS = (
    "write", "pwrite", "fsync", "fdatasync", "rename", "replace", "link", "unlink", "mkdir", "ftruncate", "sendfile",
)  # fmt: skip
ENDLESS = 1 << 30


class Fault:
    """At call `first` something happens: error `number`, `times` times in a row, or without a number a kill.

    `after`: the kill comes when the call is done.
    """

    def __init__(self, first: int, number: int = 0, *, times: int = 1, after: bool = False) -> None:
        self.first = first
        self.number = number
        self.times = times
        self.after = after
        self.calls = 0
        self.failed = 0

    def mend(self) -> None:
        """The disk works again."""
        self.times = 0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*words: Any, **more: Any) -> Any:
            if call.__name__ == "mkdir" and os.path.isdir(words[0]):
                return call(*words, **more)  # "make sure that it is there" writes nothing where it is
            self.calls += 1
            hit = self.first <= self.calls < self.first + self.times
            if hit and self.number:
                self.failed += 1
                raise OSError(self.number, os.strerror(self.number))
            if hit and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*words, **more)
            finally:
                if hit:
                    os.kill(os.getpid(), signal.SIGKILL)

        return counted


class _Raw(io.FileIO):
    """A file whose writing half is a call like any other."""

    def write(self, data: Any) -> int:
        return os.write(self.fileno(), data)


@contextmanager
def injected(fault: Fault) -> Iterator[None]:
    originals = {name: getattr(os, name) for name in (*CALLS, "open")}
    plain_open = builtins.open

    def opened(path: Any, flags: int, *words: Any, **more: Any) -> int:
        call = fault.around(originals["open"]) if flags & os.O_CREAT else originals["open"]
        found: int = call(path, flags, *words, **more)
        return found

    def file(path: Any, mode: str = "r", *words: Any, **more: Any) -> Any:
        if mode == "wb":
            return io.BufferedWriter(_Raw(path, "wb", **{name: more[name] for name in more if name == "closefd"}))
        return plain_open(path, mode, *words, **more)

    for name in CALLS:
        setattr(os, name, fault.around(originals[name]))
    os.open = opened  # type: ignore[assignment]
    builtins.open = file  # type: ignore[assignment]
    try:
        yield
    finally:
        builtins.open = plain_open
        for name, original in originals.items():
            setattr(os, name, original)
