"""A PostgreSQL server of our own in a temporary directory, on a socket only; as another user where we are root.

Not below pytest's directory: that is for one user, and its path is too long for a socket.
"""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import subprocess
from pathlib import Path


def missing() -> str:
    """Why there can be no server here; "" if there can."""
    if not programs():
        return "needs PostgreSQL's programs: apt install postgresql"
    try:
        import psycopg  # noqa: F401 - only to know
    except ImportError:
        return "needs psycopg 3: apt install python3-psycopg"
    if os.geteuid() == 0 and _user() is None:
        return "PostgreSQL does not run as root, and there is no user postgres"
    return ""


def programs() -> str:
    """The folder of the newest installed version."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda path: int(path.split("/")[4]))
    return os.path.dirname(found[-1]) if found else ""


def _user() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return None


class Server:
    """Started when made; `url(schema)` for a connection with tables of its own. Without `fsync` fast and forgetful."""

    def __init__(self, folder: Path, *, fsync: bool = False) -> None:
        self.folder = folder
        self._fsync = "on" if fsync else "off"
        self.data = folder / "data"
        self._as: list[str] = []
        if os.geteuid() == 0:
            user = _user()
            assert user
            self._as = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
            shutil.chown(folder, user.pw_uid, user.pw_gid)
        self._run("initdb", "-D", str(self.data), "-U", "edgeguard", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()

    def start(self, *options: str) -> None:
        known = ("listen_addresses=", f"fsync={self._fsync}", "max_connections=40", *options)
        settings = f"-k {self.folder} " + " ".join(f"-c {setting}" for setting in known)
        self._run("pg_ctl", "-D", str(self.data), "-l", str(self.folder / "log"), "-w", "-o", settings, "start")

    def stop(self, how: str = "fast") -> None:
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", how, "stop")

    def url(self, schema: str = "public") -> str:
        return f"postgresql://edgeguard@/postgres?host={self.folder}&options=-csearch_path%3D{schema}"

    def cpu(self) -> float:
        """Seconds that the server has taken, its processes that ended and those that live."""
        import psutil

        first = psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
        return sum(first.cpu_times()[:4]) + sum(sum(child.cpu_times()[:2]) for child in first.children(recursive=True))

    def schema(self, name: str) -> None:
        """A new one, empty."""
        from edgeguard.collector.postgres import Postgres

        admin = Postgres(self.url())
        admin.run(f"DROP SCHEMA IF EXISTS {name} CASCADE; CREATE SCHEMA {name}")
        admin.close()

    def _run(self, program: str, *words: str) -> None:
        command = [*self._as, f"{programs()}/{program}", *words]
        with (self.folder / "said").open("wb") as said:  # no pipe: a server that it starts would hold it open
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, check=False, timeout=120, cwd="/"
            )
        assert done.returncode == 0, (command, (self.folder / "said").read_text())
