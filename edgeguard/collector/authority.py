"""Certificates and keys: a small CA of the collector's own, its server certificate, its receipt key, and what a device
gets. TLS proves who is talking; what is said is proved by the device's own key, which never leaves the device.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgeguard.codec import certificates, cose
from edgeguard.errors import DecodeError

CA_DAYS = 3650
SERVER_DAYS = 825  # the longest that common TLS stacks accept
DEVICE_DAYS = 825
BACKDATED = timedelta(hours=1)  # devices' clocks are not exact


def create(directory: str, hosts: Sequence[str]) -> None:
    """CA, server certificate for `hosts` (names or addresses), receipt key. Raises FileExistsError: never twice."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    name = _name("EdgeGuard collector CA")
    ca = (
        _builder(name, name, ca_key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    _save(os.path.join(directory, "ca.key"), _pem(ca_key), 0o600)
    _save(os.path.join(directory, "ca.pem"), ca.public_bytes(serialization.Encoding.PEM), 0o644)
    key, certificate = _issue(directory, hosts[0], SERVER_DAYS, ExtendedKeyUsageOID.SERVER_AUTH, hosts)
    _save(os.path.join(directory, "server.key"), key, 0o600)
    _save(os.path.join(directory, "server.pem"), certificate, 0o644)
    seed = cose.generate_seed()
    _save(os.path.join(directory, "collector.key"), seed, 0o600)
    _save(os.path.join(directory, "collector.pub"), cose.public_of(seed).hex().encode() + b"\n", 0o644)


def bundle(directory: str, target: str, device: bytes) -> None:
    """What one device needs to talk to us: ca.pem, client.pem, client.key, collector.pub. Raises FileExistsError."""
    os.makedirs(target, mode=0o700)
    key, certificate = _issue(directory, device.hex(), DEVICE_DAYS, ExtendedKeyUsageOID.CLIENT_AUTH, ())
    _save(os.path.join(target, "client.key"), key, 0o600)
    _save(os.path.join(target, "client.pem"), certificate, 0o644)
    for name in ("ca.pem", "collector.pub"):
        _save(os.path.join(target, name), _read(os.path.join(directory, name)), 0o644)


def broker(directory: str, target: str, hosts: Sequence[str]) -> None:
    """What an MQTT broker under these names needs: ca.pem, broker.pem, broker.key. Raises FileExistsError."""
    os.makedirs(target, mode=0o700)
    key, certificate = _issue(directory, hosts[0], SERVER_DAYS, ExtendedKeyUsageOID.SERVER_AUTH, hosts)
    _save(os.path.join(target, "broker.key"), key, 0o600)
    _save(os.path.join(target, "broker.pem"), certificate, 0o644)
    _save(os.path.join(target, "ca.pem"), _read(os.path.join(directory, "ca.pem")), 0o644)


def client(directory: str, name: str, path: str) -> None:
    """A client's key and certificate: `path`.key and `path`.pem. Raises FileExistsError."""
    key, certificate = _issue(directory, name, SERVER_DAYS, ExtendedKeyUsageOID.CLIENT_AUTH, ())
    _save(f"{path}.key", key, 0o600)
    _save(f"{path}.pem", certificate, 0o644)


def _issue(
    directory: str, name: str, days: int, purpose: x509.ObjectIdentifier, hosts: Sequence[str]
) -> tuple[bytes, bytes]:
    """A key and a certificate by our CA, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return _pem(key), _certificate(directory, name, key.public_key(), days, purpose, hosts)


def certify(directory: str, name: str, public: ec.EllipticCurvePublicKey) -> bytes:
    """A device's certificate for a key that it made itself, PEM."""
    return _certificate(directory, name, public, DEVICE_DAYS, ExtendedKeyUsageOID.CLIENT_AUTH, ())


def requested(csr: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a certificate request in DER, which proves that who asks has it. Only the key is taken: what the
    request says of names and purposes counts for nothing. Raises DecodeError."""
    try:
        request = x509.load_der_x509_csr(csr)
        key = request.public_key()
        valid = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise DecodeError(f"certificate request: {error}") from error
    if not valid or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise DecodeError("certificate request: not one by a P-256 key")
    return key


def renewed(directory: str, name: str, der: bytes) -> bytes:
    """The same key certified anew, PEM, for the certificate that TLS has verified."""
    key = x509.load_der_x509_certificate(der).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise DecodeError("certificate: not one of a P-256 key")
    return certify(directory, name, key)


def issued(directory: str, name: str, der: bytes) -> int:
    """When a certificate that TLS has not verified was made, ms since 1970. Raises DecodeError unless it is ours, still
    good, and for this name."""
    ca = x509.load_pem_x509_certificate(_read(os.path.join(directory, "ca.pem")))
    ca_key = ca.public_key()
    try:
        shown = x509.load_der_x509_certificate(der)
        algorithm = shown.signature_hash_algorithm
        if not isinstance(ca_key, ec.EllipticCurvePublicKey) or algorithm is None or shown.issuer != ca.subject:
            raise DecodeError("certificate: not one of ours")
        ca_key.verify(shown.signature, shown.tbs_certificate_bytes, ec.ECDSA(algorithm))
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, x509.InvalidVersion) as error:
        raise DecodeError("certificate: not one of ours") from error
    valid = certificates.validity(der)
    if certificates.common_name(der) != name or not valid.holds(int(datetime.now(UTC).timestamp() * 1000)):
        raise DecodeError("certificate: of another, or not valid now")
    return valid.begins + int(BACKDATED.total_seconds() * 1000)


def fingerprint(directory: str) -> str:
    """SHA-256 of the CA's certificate, in hex."""
    ca = x509.load_pem_x509_certificate(_read(os.path.join(directory, "ca.pem")))
    return ca.fingerprint(hashes.SHA256()).hex()


def _certificate(
    directory: str,
    name: str,
    public: ec.EllipticCurvePublicKey,
    days: int,
    purpose: x509.ObjectIdentifier,
    hosts: Sequence[str],
) -> bytes:
    ca = x509.load_pem_x509_certificate(_read(os.path.join(directory, "ca.pem")))
    ca_key = serialization.load_pem_private_key(_read(os.path.join(directory, "ca.key")), None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise TypeError("ca.key is not a P-256 key")
    builder = (
        _builder(_name(name), ca.subject, public, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:

    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _save(path: str, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(fd, "wb") as file:
        file.write(data)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
