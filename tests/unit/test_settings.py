"""agent.toml: what is wrong in it is said as one error of ours, whatever it is."""

from __future__ import annotations

import pytest

from edgeguard.errors import SettingsError
from edgeguard.settings import Settings, parse


def test_defaults_and_values() -> None:
    assert parse(b"") == Settings()
    found = parse(b'name = "pump"\n[budget]\nsweep_s = 60\n[uplink]\nspawn = true\n')
    assert (found.name, found.budget.sweep_s, found.uplink.spawn) == ("pump", 60, True)


NO_HANDLES = (b"", b"0x81", b"0x80000000", b"0x81800000", b"0x8102454", b"0x810245477", b"0x8102454g", b"-c 0x81024547")


@pytest.mark.parametrize("handle", ["0x81000000", "0x817FFFFF", "0x81024547"])
def test_a_persistent_handle_of_the_owner(handle: str) -> None:
    assert parse(f'[identity]\nkind = "tpm2"\nhandle = "{handle}"\n'.encode()).identity.handle == handle


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"nmae = 'x'", "unknown setting 'nmae'"),
        (b"mode = 'on'", "mode"),
        (b"name = 7", "expected a text in quotes, got 7"),
        (b"[budget]\nsweep_s = 0", "expected a number from 1"),
        (b"[budget]\nsweep_s = true", "expected a whole number"),
        (b"budget = 1", "expected a table"),
        (b"a = \nb = 1", "line 1, column 5"),
        (b"\xff", "utf-8"),
        (b"a = " + b"[" * 5000, "nested too deeply"),
        (b"a = " + b"{b=" * 5000, "nested too deeply"),
        (b"[budget]\nsweep_s = " + b"9" * 5000, "4300 digits"),
        (b"[budget]\nsweep_s = 0x" + b"f" * 5000, "a giant number"),
        (b"name = 0x" + b"f" * 5000, "a giant number"),
        (b"name = [0x" + b"f" * 5000 + b"]", "a giant number"),
        (b"[budget]\nsweep_s = %d" % (2**63), "expected a number from 1"),
        (b"[identity]\nkind = 'tpm'", "identity.kind: expected one of file, credential, tpm2"),
        (b"identity = 'tpm2'", "expected a table"),
        *((b"[identity]\nhandle = '%s'" % handle, "a persistent handle") for handle in NO_HANDLES),
        (b"[identity]\ntcti = 'cmd:/tmp/x'", "identity.tcti: expected one of device"),
        (b"[identity]\ntcti = '/tmp/libx.so'", "identity.tcti"),
        (b'[identity]\ntcti = "device:/dev/tpm\\u001b"', "identity.tcti"),
    ],
)
def test_what_is_wrong_is_one_error(text: bytes, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"mode" + b".a" * 20000 + b" = 1", "mode: expected a text in quotes, got a table nested too deeply"),
        (b"[budget.sweep_s" + b".a" * 20000 + b"]", "got a table nested too deeply"),
        (b"a" * 60000 + b" = 1", "unknown setting 'aaaa"),
    ],
    ids=["dotted key", "dotted table", "long name"],
)
def test_what_is_wrong_is_said_in_a_line(text: bytes, said: str) -> None:
    """Dotted keys nest without brackets: tomllib takes tables in tables that Python cannot print."""
    with pytest.raises(SettingsError) as caught:
        parse(text)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400
