"""What the verbs of `edgeguard-collector` share: the collector's directory, what is said, how a person is told no."""

from __future__ import annotations

import os
import sys

from edgeguard.collector import events, store
from edgeguard.collector.config import Config, load
from edgeguard.collector.database import Database
from edgeguard.errors import SettingsError

CONFIG_HELP = "configuration (default: DIR/edgeguard-collector.toml, where there is one)"


class Wrong(Exception):
    """The person asked for something that cannot be; the message says why."""


def configured(directory: str, path: str | None = None) -> Config:
    """Its configuration. Raises Wrong."""
    try:
        return load(directory, path)
    except SettingsError as error:
        raise Wrong(str(error)) from error


def opened(directory: str, path: str | None = None, *, looking: bool = False) -> Database:
    """The collector's database, whichever it is. `looking`: nothing is written. Raises Wrong."""
    config = configured(directory, path)
    if not config.database and not os.path.exists(os.path.join(directory, store.FILE)):
        raise Wrong(f"no collector in {directory}: edgeguard-collector init {directory}")
    return store.open_readonly(directory, config) if looking else store.open_(directory, config)


def say(line: str) -> None:
    sys.stdout.write(events.printable(line) + "\n")


def log(line: str) -> None:
    sys.stderr.write(events.printable(line) + "\n")
    sys.stderr.flush()
