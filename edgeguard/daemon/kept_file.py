"""A file that a helper would like to write: a disk that does not take it must not end the looking at files."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any


class Kept(io.RawIOBase):
    """Written as long as the disk takes it. After the first error what follows goes nowhere, and `problem` says why."""

    def __init__(self, path: str, flags: int) -> None:
        self.problem = ""
        self._fd = -1
        try:
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            self._failed(error)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        size = view.nbytes
        while view.nbytes and not self.problem:
            try:
                view = view[os.write(self._fd, view) :]
            except OSError as error:
                self._failed(error)
        return size

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if not self.problem:
            try:
                return os.lseek(self._fd, offset, whence)
            except OSError as error:
                self._failed(error)
        return 0

    def truncate(self, size: int | None = None, /) -> int:
        size = self.tell() if size is None else size
        if not self.problem:
            try:
                os.ftruncate(self._fd, size)
            except OSError as error:
                self._failed(error)
        return size

    def keep(self) -> bool:
        """Make it durable. False: it is not, and `problem` says why."""
        if not self.problem:
            try:
                os.fsync(self._fd)
            except OSError as error:
                self._failed(error)
        return not self.problem

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        super().close()

    def _failed(self, error: OSError) -> None:
        self.problem = error.strerror or str(error)
        if self._fd >= 0:  # half of it is of no use to anybody, and room is what is missing
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
