"""What a verb knows of its surroundings: the terminal, the daemon's socket, how to print. The only place that asks."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from edgeguard import control
from edgeguard.cli.words import ascii_only, safe
from edgeguard.settings import DEFAULT_FILE, Settings, load

PROGRESS_PLAIN_S = 30.0  # without a terminal: one line as often as this


class Console:
    """Made from the common options of the command line."""

    def __init__(self, given: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> None:
        self.form: str = given.output
        self.quiet: bool = given.quiet
        self._socket: str = given.socket
        self._settings_file: str = given.settings
        self._environment = environment
        self._told = 0.0
        self._line = False
        terminal = sys.stdout.isatty()
        self.unicode = speaks_utf8(environment)
        self.color = given.color == "always" or (
            given.color == "auto"
            and terminal
            and not environment.get("NO_COLOR")
            and environment.get("TERM", "dumb") != "dumb"
        )
        size = _terminal_size() if terminal else None
        self.columns = max(20, min(500, size[0])) if size else 80
        self.height = max(5, min(1000, size[1])) if size else 24
        self.cut = self.columns if terminal else 0  # a pipe gets whole lines
        self.reconfigure()

    @staticmethod
    def reconfigure() -> None:
        """Never die of a letter that the terminal cannot show."""
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")

    # -- the daemon

    @property
    def settings(self) -> Settings:
        return load(self._settings_file or DEFAULT_FILE)

    @property
    def runtime(self) -> str:
        return os.path.dirname(os.path.abspath(self._socket)) if self._socket else self.settings.paths.runtime

    @property
    def socket(self) -> str:
        return self._socket or f"{self.settings.paths.runtime}/control.sock"

    def ask(self, verb: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Replies of the daemon, every text in them escaped."""
        for answer in control.call(self.socket, verb, parameters):
            yield safe(answer) if self.form == "text" else answer

    def ask_once(self, verb: str, **parameters: Any) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        for answer in self.ask(verb, **parameters):  # noqa: B007 - the last one is the answer
            pass
        return answer

    # -- out

    @property
    def now(self) -> int:
        return time.time_ns() // 1_000_000

    def text(self, text: str) -> None:
        """The answer."""
        self.end_progress()
        if not self.quiet:
            sys.stdout.write(text if self.unicode else ascii_only(text))
            if not text.endswith("\n"):
                sys.stdout.write("\n")

    def json(self, document: Any) -> None:
        """The answer for a program, as one line (`json` and `jsonl` differ in what a verb puts into one)."""
        self.end_progress()
        if not self.quiet:
            sys.stdout.buffer.write(control.dump(document) if isinstance(document, Mapping) else _dump(document))
            sys.stdout.buffer.flush()

    def answers(self, found: Sequence[dict[str, Any]], as_text: Callable[[dict[str, Any]], str]) -> None:
        """Several answers: one document, a line each, or text."""
        if self.form == "json":
            self.json({"v": 1, "answers": found})
        for answer in found:
            if self.form == "jsonl":
                self.json(answer)
            elif self.form == "text":
                self.text(as_text(answer))

    def progress(self, text: str) -> None:
        """One line on stderr: redrawn on a terminal, now and then without one."""
        if self.quiet:
            return
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K" + text)
            sys.stderr.flush()
            self._line = True
        elif time.monotonic() - self._told >= PROGRESS_PLAIN_S:
            self._told = time.monotonic()
            print(text, file=sys.stderr)

    def end_progress(self) -> None:
        if self._line:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._line = False

    def remark(self, text: str) -> None:
        """Something beside the answer."""
        self.end_progress()
        if not self.quiet:
            print(text, file=sys.stderr)


def speaks_utf8(environment: Mapping[str, str]) -> bool:
    """ASCII in the C locale and on terminals that are known to show no more."""
    kind = environment.get("LC_CTYPE", "").replace("C.UTF-8", "")  # Python itself puts that in place of the C locale
    locale = environment.get("LC_ALL") or kind or environment.get("LANG") or ""
    if environment.get("TERM", "") in {"vt100", "dumb", "linux"}:
        return False
    return "UTF-8" in locale.upper() or "UTF8" in locale.upper()


def _terminal_size() -> tuple[int, int] | None:
    try:
        size = os.get_terminal_size(1)
    except OSError:
        return None
    return (size.columns, size.lines) if size.columns and size.lines else None  # a serial line knows neither: 0 x 0


def _dump(document: Any) -> bytes:
    import json

    return json.dumps(document, separators=(",", ":")).encode("ascii") + b"\n"
