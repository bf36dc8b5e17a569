"""Who may ask, with real users: nobody is turned away by the kernel, or by the daemon where the socket lets them in."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / "tests/unit/cli"))

from fakes import Fake  # noqa: E402 - lies with the unit tests

pytestmark = pytest.mark.root
NOBODY = 65534
# The code as the package installs it: below a root-owned directory that everybody may read.
LAUNCHER = (TOP / "packaging/bin/edgeguard").read_text()


@pytest.fixture
def place():
    """A directory that nobody can read (imports list it), with the program in it."""
    # not tmp_path: every run of pytest closes the folder above to others again, also one that runs beside this
    with tempfile.TemporaryDirectory(prefix="edgeguard-rights-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "packaging/bin").mkdir(parents=True)
        (folder / "packaging/bin/edgeguard").write_text(LAUNCHER)
        (folder / "pyproject.toml").touch()
        subprocess.run(["/bin/cp", "-r", str(TOP / "edgeguard"), name], check=True)
        subprocess.run(["/bin/chmod", "-R", "go+rX", f"{name}/edgeguard", f"{name}/packaging"], check=True)
        yield folder


def as_nobody(place, *arguments, groups=()):
    return subprocess.run(
        ["/usr/bin/python3", "-IS", f"{place}/packaging/bin/edgeguard", f"--socket={place}/control.sock", *arguments],
        env={"LANG": "C.UTF-8"},
        user=NOBODY,
        group=NOBODY,
        extra_groups=list(groups),
        capture_output=True,
        timeout=30,
        check=False,
    )


def test_nobody_is_not_permitted(place):
    with Fake(str(place / "control.sock")) as fake:
        for verb in ("status", "findings", "scan"):
            done = as_nobody(place, verb)
            assert (done.returncode, done.stdout) == (77, b""), done.stderr
        os.chmod(fake.path, 0o666)  # even if the file lets everybody in
        for verb in ("status", "findings", "scan"):
            done = as_nobody(place, verb)
            assert done.returncode == 77
            assert b"only root" in done.stderr


@pytest.mark.parametrize(("group", "scan"), [("readers", 77), ("admins", 1)])
def test_supplementary_groups_open_what_they_should(place, group, scan):
    gids = {"readers": 64001, "admins": 64002}
    with Fake(str(place / "control.sock")) as fake:
        fake.serving.server.rights = fake.serving.server.rights._replace(owner=0, **gids)
        os.chmod(fake.path, 0o666)
        assert as_nobody(place, "status", groups=[gids[group]]).returncode == 0
        assert as_nobody(place, "scan", groups=[gids[group]]).returncode == scan
