"""When a certificate is valid, read without cryptography: the same as cryptography says, and nothing else passes."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.codec import certificates
from edgeguard.codec.certificates import Validity
from edgeguard.errors import DecodeError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "x" * 60)])


def certificate(begins: datetime, ends: datetime) -> bytes:
    naive = (moment.replace(tzinfo=None) for moment in (begins, ends))  # what cryptography 38 takes
    builder = x509.CertificateBuilder(NAME, NAME, KEY.public_key(), 7, *naive)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(-7_000 * 86_400, 80_000 * 86_400).map(lambda second: EPOCH + timedelta(seconds=second)),
    st.timedeltas(timedelta(seconds=1), timedelta(days=20000)),
)
def test_times_are_those_in_the_certificate(begins, life):
    ends = (begins + life).replace(microsecond=0) + timedelta(seconds=1)
    found = certificates.validity(certificates.der(b"words before\n" + certificate(begins, ends)))
    expected = [int(moment.timestamp()) * 1000 for moment in (begins, ends)]
    assert list(found) == expected


def test_a_third_of_the_life_is_the_time_to_renew():
    life = Validity(0, 900)
    assert [now for now in (0, 600, 601, 899, 2000) if life.due(now)] == [601, 899, 2000]
    assert life.holds(0)
    assert life.holds(900)
    assert not life.holds(901)
    assert not life.holds(-1)


def test_every_cut_and_every_pem_that_is_none_is_refused():
    der = certificates.der(certificate(EPOCH, EPOCH + timedelta(days=9)))
    for size in range(len(der)):
        with pytest.raises(DecodeError):
            certificates.validity(der[:size])
    for pem in (b"", b"-----BEGIN CERTIFICATE-----", b"-----BEGIN CERTIFICATE-----!-----END CERTIFICATE-----"):
        with pytest.raises(DecodeError):
            certificates.der(pem)


def test_a_request_names_the_device_and_proves_its_key():
    key, csr = certificates.request("ab" * 16)
    request = x509.load_der_x509_csr(csr)
    assert request.is_signature_valid
    assert request.subject.rfc4514_string() == "CN=" + "ab" * 16
    private = serialization.load_pem_private_key(key, None)
    assert private.public_key().public_numbers() == request.public_key().public_numbers()
