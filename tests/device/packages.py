"""The packages on clean roots of a Debian release: python3 -m tests.device.packages [bookworm] [trixie]

    lintian      that release's own, with everything that it can say
    piuparts     installs, removes and purges both packages, and looks for what stays
    autopkgtest  debian/tests that need no systemd, in a chroot; those that do run in tests/device/test_autopkgtest.py

Needs root, and what is installed comes from the Debian archive; roots are those of the test devices.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.device.cache import cache
from tests.device.lab import PATH
from tests.device.roots import root_tar

TOP = Path(__file__).resolve().parents[2]
STEP_S = 900
# Debian 12's lintian still asks for init scripts; both releases run systemd, and so do the devices.
LINTIAN = """set -eu
apt-get -q -y --no-install-recommends install lintian >/tmp/apt.log 2>&1 || { apt-get -q update >>/tmp/apt.log 2>&1 &&
    apt-get -q -y --no-install-recommends install lintian >>/tmp/apt.log 2>&1; } || { tail /tmp/apt.log; exit 1; }
lintian --version
old=$(lintian-explain-tags --list-tags | grep -x package-supports-alternative-init-but-no-init.d-script || :)
lintian ${old:+--suppress-tags=$old} --allow-root --pedantic --display-info --fail-on error,warning,info,pedantic \\
    /tmp/dist/*.deb
"""
SOME_SKIPPED = 2  # exit status of autopkgtest: no test failed, some want more than a chroot
# What autopkgtest itself wants in a testbed.
APT_UTILS = "apt-get -q update && apt-get -q -y --no-install-recommends install apt-utils"
# Made by others while a package is installed, and not of ours.
PIUPARTS_IGNORED = (
    "/etc/.pwd.lock",
    "/var/cache/debconf/tmp.ci/?",
    "/var/lib/systemd",
    "/etc/systemd/system/timers.target.wants",
)


@contextlib.contextmanager
def chroot(suite: str) -> Iterator[Path]:
    """A tree of that release with /proc and a bind of nothing else, taken away at the end."""
    root = Path(tempfile.mkdtemp(prefix=f".chroot-{suite}-", dir=cache()))
    try:
        run("tar", "-C", str(root), "--numeric-owner", "-xpf", str(root_tar(suite)))
        shutil.copyfile("/etc/resolv.conf", root / "etc/resolv.conf")
        run("mount", "-t", "proc", "proc", str(root / "proc"))
        yield root
    finally:
        subprocess.run(["umount", "-l", str(root / "proc")], check=False, capture_output=True)
        if not os.path.ismount(root / "proc"):
            shutil.rmtree(root, ignore_errors=True)


def run(*words: str, fine: tuple[int, ...] = (0,)) -> str:
    """A command to its end; RuntimeError with the end of what it said."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}  # paths of this tree
    environment = {**kept, "PATH": PATH, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # else Debian's py3clean leaves its own behind, and piuparts blames us
    done = subprocess.run(
        words,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=STEP_S,
        check=False,
    )
    if done.returncode not in fine:
        raise RuntimeError(f"{' '.join(words[:3])}: exit {done.returncode}\n{done.stdout[-6000:]}")
    return done.stdout


def debs() -> list[str]:
    found = sorted(str(path) for path in (TOP / "dist").glob("*_all.deb"))
    if not found:
        raise RuntimeError("no package in dist/: make deb")
    return found


def lintian(suite: str) -> str:
    with chroot(suite) as root:
        (root / "tmp/dist").mkdir()
        for deb in debs():
            shutil.copy(deb, root / "tmp/dist")
        return run("chroot", str(root), "/bin/sh", "-c", LINTIAN).splitlines()[0]


def piuparts(suite: str) -> str:
    """Both packages at once; each alone, and one after the other, are journeys of the device tests."""
    common = ["piuparts", f"--basetgz={zipped(suite)}", f"--distribution={suite}", "--no-upgrade-test"]
    common += ["--no-eatmydata", "--warn-on-debsums-errors", "--log-level=info"]
    common += [f"--ignore-regex={name}" for name in PIUPARTS_IGNORED]
    run(*common, *debs())
    return "installed, removed, purged, nothing left"


def zipped(suite: str) -> Path:
    """The root as piuparts wants it, kept beside the tar."""
    tar = root_tar(suite)
    target = cache() / f"{tar.stem}.tgz"
    if not target.exists():
        part = target.with_suffix(".part")
        with part.open("wb") as out:
            subprocess.run(["gzip", "-1", "-c", str(tar)], stdout=out, check=True)
        part.rename(target)
    return target


def autopkgtest(suite: str) -> str:
    (source,) = (path for path in (TOP / "build/deb").glob("edgeguard-*") if path.is_dir())
    with chroot(suite) as root, tempfile.TemporaryDirectory() as output:
        ready = f"--setup-commands={APT_UTILS}"
        words = ["autopkgtest", *debs(), f"{source}/", ready, f"--output-dir={output}/out", "--", "chroot", str(root)]
        said = run(*words, fine=(0, SOME_SKIPPED))
    passed = re.findall(r"^(\S+) +PASS$", said, re.MULTILINE)
    if not passed:
        raise RuntimeError(f"autopkgtest ran nothing\n{said[-3000:]}")
    return f"passed: {', '.join(sorted(set(passed)))}; those that want systemd run on a booted device"


STEPS: dict[str, Callable[[str], str]] = {"lintian": lintian, "piuparts": piuparts, "autopkgtest": autopkgtest}


def main(suites: list[str]) -> int:
    failed = 0
    for suite in suites or ["bookworm", "trixie"]:
        for name, step in STEPS.items():
            try:
                print(f"ok      {suite} {name}: {step(suite)}", flush=True)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                failed += 1
                print(f"FAILED  {suite} {name}: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
