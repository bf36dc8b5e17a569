"""The TPM 2.0 through tpm2-tools: one command at a time, bounded in time and in output.

A driver may wait for a TPM so deeply that not even a kill ends the command. Each command therefore holds a lock for as
long as it lives: as long as one hangs, no second joins it, and whoever asks is told so.
What goes in and comes out lies in memory (memfd), never in a file that somebody else could exchange.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import resource
import subprocess
import tempfile
import time

from edgeguard.errors import Unavailable

DIRECTORY = "/usr/bin"
TIMEOUT_S = 20.0  # of one command; a slow TPM makes a key of P-256 in two seconds and signs in less than one
OUTPUT_MAX = 64 * 1024  # bytes
POLL_S = 0.05
_CODE = re.compile(r"\(0x([0-9A-Fa-f]{1,8})\)")
_WORDS = {  # TPM_RC of Part 2, 6.6.3, without the bits that number handles and sessions
    0x08B: "no key is at that handle",
    0x082: "that is no key for this",
    0x08E: "the key wants a password, and wrong ones are counted",
    0x0A2: "the key wants a password",
    0x09D: "the key wants a policy",
    0x101: "the TPM has failed and must be reset",
    0x120: "the TPM is disabled",
    0x14C: "something is at that handle already",
    0x902: "no room in the TPM for another object",
    0x921: "the TPM is locked out, after too many wrong passwords (tpm2_dictionarylockout)",
    0x922: "the TPM is busy",
    0x923: "the TPM cannot write now",
}
_FORMAT_ONE = 0x080  # this bit: the lower six say what is wrong, the others with which handle or session
_ABSENT = "Could not load tcti"


class Tpm:
    """`tcti` says how the tools reach it, `lock` is a file that only we can open."""

    def __init__(self, tcti: str, lock: str, timeout_s: float = TIMEOUT_S, directory: str = DIRECTORY) -> None:
        self._tcti = tcti
        self._lock = lock
        self._timeout_s = timeout_s
        self._directory = directory

    def sign(self, handle: str, digest: bytes) -> bytes:
        """A TPMT_SIGNATURE over a SHA-256. Raises Unavailable, as all here do."""
        return self._run("tpm2_sign", "-c", handle, "-g", "sha256", "-s", "ecdsa", "-d", "-f", "tss", given=digest)

    def public(self, handle: str) -> bytes:
        """The TPM2B_PUBLIC of the key at a handle."""
        return self._run("tpm2_readpublic", "-Q", "-c", handle, "-f", "tss")

    def create(self, handle: str) -> None:
        """A new key that signs and cannot leave, in the hierarchy of the owner, at a persistent handle.

        Not a primary key: that would be the same again on a device that was set up anew, with numbers that begin anew.
        `noda`: wrong passwords for something else in this TPM do not lock it.
        """
        kind = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign|noda"
        with tempfile.TemporaryDirectory(prefix="edgeguard-tpm-") as beside:
            primary, key, public, private = (os.path.join(beside, name) for name in ("primary", "key", "pub", "priv"))
            self._do("tpm2_createprimary", "-Q", "-C", "o", "-g", "sha256", "-G", "ecc256", "-c", primary)
            made = ("-g", "sha256", "-G", "ecc256:ecdsa-sha256", "-a", kind, "-u", public, "-r", private)
            self._do("tpm2_create", "-Q", "-C", primary, *made)
            self._do("tpm2_load", "-Q", "-C", primary, "-u", public, "-r", private, "-c", key)
            self._do("tpm2_evictcontrol", "-Q", "-C", "o", "-c", key, handle)

    def _do(self, tool: str, *arguments: str) -> None:
        self._run(tool, *arguments, output=False)
        with contextlib.suppress(Unavailable):  # where no resource manager does it: there is room for three
            self._run("tpm2_flushcontext", "-t", output=False)

    def _run(self, tool: str, *arguments: str, given: bytes = b"", output: bool = True) -> bytes:
        path = os.path.join(self._directory, tool)
        lock = self._locked()
        files = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("given", "said", "out")]
        try:
            question, said, out = files
            os.write(question, given)
            os.lseek(question, 0, os.SEEK_SET)
            words = [path, *arguments, *(["-o", f"/proc/self/fd/{out}"] if output else [])]
            process = subprocess.Popen(
                words,
                stdin=question,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TPM2TOOLS_TCTI": self._tcti, "TSS2_LOG": "all+none"},
                pass_fds=(lock, out),
                preexec_fn=_bounded,  # noqa: PLW1509 - there is one thread
            )
            code = self._ended(process)
            if code:
                raise Unavailable(f"{tool}: {_reason(os.pread(said, OUTPUT_MAX, 0), code)}")
            return os.pread(out, OUTPUT_MAX, 0)
        except FileNotFoundError as error:
            raise Unavailable(f"{path} is not there: apt install tpm2-tools") from error
        except OSError as error:
            raise Unavailable(f"{path}: {error.strerror}") from error
        finally:
            for fd in (lock, *files):
                os.close(fd)

    def _ended(self, process: subprocess.Popen[bytes]) -> int:
        try:
            return process.wait(self._timeout_s)
        except subprocess.TimeoutExpired as error:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)  # what hangs in the kernel stays, with the lock
            raise Unavailable(f"the TPM has not answered for {self._timeout_s:g} s") from error

    def _locked(self) -> int:
        try:
            fd = os.open(self._lock, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise Unavailable(f"{self._lock}: {error.strerror}") from error
        until = time.monotonic() + self._timeout_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > until:
                    os.close(fd)
                    raise Unavailable("the TPM is still busy with what was asked before") from error
                time.sleep(POLL_S)
            else:
                return fd


def _bounded() -> None:
    """In the child: whatever it writes, it is not much."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_MAX, OUTPUT_MAX))


def _reason(said: bytes, code: int) -> str:
    """What tpm2-tools say, in one line."""
    text = said.decode("utf-8", "replace")
    if _ABSENT in text:
        return "there is no TPM, or it may not be opened"
    for found in _CODE.findall(text):
        number = int(found, 16)
        reduced = number & (0x0BF if number & _FORMAT_ONE else 0xFFF)
        if reduced in _WORDS:
            return f"{_WORDS[reduced]} ({number:#05x})"
    lines = [line.removeprefix("ERROR: ").strip() for line in text.splitlines() if line.startswith("ERROR")]
    return lines[0][:200] if lines else f"ended with {'signal' if code < 0 else 'exit code'} {abs(code)}"
