"""What the verbs of `edgeguard-collector` share: the collector's directory, what is said, how a person is told no."""

from __future__ import annotations

import os
import sys

from edgeguard.collector import events, store
from edgeguard.collector.config import Config, load
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


def database(directory: str) -> str:
    return os.path.join(directory, store.FILE)


def existing(directory: str) -> str:
    path = database(directory)
    if not os.path.exists(path):
        raise Wrong(f"no collector in {directory}: edgeguard-collector init {directory}")
    return path


def say(line: str) -> None:
    sys.stdout.write(events.printable(line) + "\n")


def log(line: str) -> None:
    sys.stderr.write(events.printable(line) + "\n")
    sys.stderr.flush()
