"""edgeguardd: starts everything in order, keeps it running, ends it in order.

    settings -> ledger, spool -> control socket -> baseline (verify, or learn) -> sensors -> sweep of what changed
    while we were away -> the loop

A part that fails is a named failure in `health` and the others go on; only wrong settings and a runtime directory
that cannot be written end the daemon, with one clear line.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys

from edgeguard import settings as settings_module
from edgeguard.control_server.peers import Rights
from edgeguard.control_server.server import Server
from edgeguard.daemon import verbs
from edgeguard.daemon.guard import Guard
from edgeguard.daemon.loop import Loop
from edgeguard.daemon.notify import Notify
from edgeguard.errors import EdgeGuardError
from edgeguard.settings import Settings

WATCHDOG_SHARE = 3  # feed three times as often as systemd asks
PR_SET_DUMPABLE = 4
TAKES_NOTHING = frozenset({errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO})


def main(arguments: list[str]) -> int:
    """`arguments`: [--settings FILE]. Returns the exit status."""
    if arguments not in ([], ["--help"], ["-h"]) and (len(arguments) != 2 or arguments[0] != "--settings"):
        sys.stderr.write("usage: edgeguardd [--settings FILE]\n")
        return 64
    if arguments and arguments[0] != "--settings":
        sys.stdout.write("usage: edgeguardd [--settings FILE]\nThe EdgeGuard daemon; see edgeguardd(8).\n")
        return 0
    path = arguments[1] if arguments else settings_module.DEFAULT_FILE
    try:
        settings = settings_module.load(path)
        prepare(settings)
    except EdgeGuardError as error:
        sys.stderr.write(f"edgeguardd: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"edgeguardd: {error.filename}: {error.strerror}\n")
        return 1
    Daemon(settings, path).run()
    return 0


def prepare(settings: Settings) -> None:
    """Directories of our own. Raises OSError where we could not even say what is wrong later.

    A disk that takes nothing is no reason not to watch: records wait in memory then, and status says so.
    """
    os.umask(0o077)
    paths = settings.paths
    for path, mode in (
        (paths.state, 0o750),
        (f"{paths.state}/keys", 0o700),
        (f"{paths.state}/baseline", 0o700),
        (f"{paths.state}/vault", 0o700),
        (f"{paths.state}/spool", 0o700),
    ):
        try:
            _make(path, mode)
        except OSError as error:
            if error.errno not in TAKES_NOTHING:
                raise
    _make(paths.runtime, 0o755)
    # Only root may make these on a device (tmpfiles.d). Without them nothing is sent, and the sealer says so.
    with contextlib.suppress(OSError):
        _make(paths.exchange, 0o755)
        _make(f"{paths.exchange}/outbox", 0o2750)
        _make(f"{paths.exchange}/inbox", 0o2770)
        _make(f"{paths.exchange}/images", 0o700)


def _make(path: str, mode: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.makedirs(path, mode=0o755)
        os.chmod(path, mode)


class Daemon:
    """The guard, with what connects it to the outside: systemd, signals, the control socket."""

    def __init__(self, settings: Settings, settings_file: str) -> None:
        self.loop = Loop()
        self.notify = Notify(self.loop)
        self.guard = Guard(self.loop, settings, settings_file, self._changed)
        self.server = Server(
            f"{settings.paths.runtime}/control.sock",
            self.loop,
            verbs.table(self.guard),
            rights(settings),
            on_bug=lambda verb, error: self.guard.trouble.bug(f"verb {verb}", error),
        )
        self._ready = False

    def run(self) -> None:
        self.loop.on_signal(signal.SIGTERM, self._stop)
        self.loop.on_signal(signal.SIGINT, self._stop)
        self.loop.on_signal(signal.SIGHUP, self.guard.reload)
        self.guard.start()
        self._feed()
        try:
            self.loop.run()
        finally:
            self.notify.stopping()
            self.server.close()
            self.guard.stop()

    def _stop(self) -> None:
        self.loop.stop()

    def _changed(self, line: str) -> None:
        """The verdict line may be another now. READY is said once sensors stand, learning began, or neither can."""
        self.notify.status(line)
        if not self._ready and self.guard.judging.settled:
            self._ready = True
            self.notify.ready()

    def _feed(self) -> None:
        """Feed systemd's watchdog from the loop itself, after a look at whether the work goes on."""
        every = self.notify.watchdog_s / WATCHDOG_SHARE if self.notify.watchdog_s else 0.0
        if every:
            if self.guard.healthy():
                self.notify.watchdog()
            self.loop.later(every, self._feed, slack=every / 2)


def rights(settings: Settings) -> Rights:
    """Group ids from /etc/group itself: NSS may ask the network, and a device must not hang on that."""
    groups: dict[str, int] = {}
    with contextlib.suppress(OSError), open("/etc/group", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, rest = line.partition(":")
            number = rest.split(":")[1] if rest.count(":") >= 1 else ""
            if number.isdigit():
                groups[name] = int(number)
    return Rights(os.geteuid(), groups.get(settings.reader_group, -1), groups.get(settings.admin_group, -1))
