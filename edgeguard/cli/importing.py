"""`edgeguard policy import-aide`: rules of AIDE as a policy, and what of them is not carried. No daemon, no root."""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Sequence
from typing import Any

from edgeguard.cli.console import Console
from edgeguard.cli.text import escape
from edgeguard.cli.words import count
from edgeguard.errors import ControlError, PolicyError
from edgeguard.model import Watch


def arguments(actions: Any) -> None:
    parser = actions.add_parser("import-aide", help="rules of AIDE as a policy", allow_abbrev=False)
    parser.add_argument("file", nargs="?", default="/etc/aide/aide.conf", metavar="FILE", help="aide.conf")
    parser.add_argument("--to", default="", metavar="FILE", help="where to write (standard output)")
    parser.add_argument("--strict", action="store_true", help="1 if something is watched less than by AIDE")


class Files:
    """The files of this machine. A FIFO must not hold us, and a directory is none."""

    def text(self, path: str) -> bytes:
        from edgeguard.baseline.aide_conf import FILE_MAX

        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(22, "not a regular file", path)
            return file.read(FILE_MAX + 1)

    def names(self, directory: str) -> Sequence[str]:
        return sorted(os.listdir(directory))

    def executable(self, path: str) -> bool:
        return os.path.isfile(path) and bool(os.stat(path).st_mode & 0o111)

    def exists(self, path: str) -> bool:
        return os.path.exists(path)


def run(given: argparse.Namespace, console: Console) -> int:
    """Every sentence goes to standard error, and as a comment into the policy."""
    from edgeguard.baseline.aide_conf import AideConf
    from edgeguard.baseline.aide_policy import Importer
    from edgeguard.baseline.policy import parse

    files = Files()
    files.text(given.file)  # that it cannot be read at all is an error, and no remark
    conf = AideConf(files, os.uname().nodename)
    conf.read(given.file)
    standing, watched = _standing(console)
    made = Importer(watched).run(conf.rules, conf.said, given.file)
    data = made.text.encode()
    try:
        parse([*standing, (given.to or "the policy", data)])
    except PolicyError as error:
        wrong = "\n".join(line for line in str(error).splitlines() if ": error: " in line)
        raise ControlError("TooLong", f"what comes of {given.file} is no policy here:\n{wrong}") from error
    lost = sum(item.lost for item in made.said)
    for item in made.said:
        word = "warning" if item.lost else "note"
        console.remark(f"{escape(item.file)}:{item.line}: {word}: {escape(item.message)}")
    console.remark(
        f"{count(made.watches, 'path')} watched, {made.left_out} left out, {count(lost, 'warning')}"
        " (a warning: something is watched less than by AIDE)"
    )
    _out(console, given.to, made.text, data, made.said)
    return 1 if lost and given.strict else 0


def _out(console: Console, to: str, text: str, data: bytes, said: Sequence[Any]) -> None:
    if to:
        fd = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with open(fd, "wb") as file:
            file.write(data)
    if console.form == "text":
        console.text(text if not to else f"Wrote {escape(to)}. Next: edgeguard policy lint")
        return
    listed = [
        {"file": escape(item.file), "line": item.line, "message": escape(item.message), "lost": item.lost}
        for item in said
    ]
    if console.form == "jsonl":
        for document in listed:
            console.json({"v": 1, **document})
    else:
        console.json({"v": 1, "file": escape(to), "policy": "" if to else text, "said": listed})


def _standing(console: Console) -> tuple[list[tuple[str, bytes]], tuple[Watch, ...]]:
    """The policy files of this device, and what they watch."""
    from edgeguard.baseline.policy import parse
    from edgeguard.baseline.store import read_policy_dirs

    paths = console.settings.paths
    try:
        files = read_policy_dirs(paths.vendor_policy, paths.site_policy)
        return files, parse(files).watches
    except PolicyError as error:
        console.remark(f"the policy files here are not right, so what they watch is not known: {escape(str(error))}")
        return [], ()
