"""TLS for a test server. Debian's PostgreSQL has it, the embedded one doesn't."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from airflow_dblink.embedded.server import Server


def use_tls(server: Server, home: Path, *hba: str) -> Path:
    """Restart *server* with TLS and the lines *hba* as its pg_hba.conf; return the clients' sslrootcert."""
    trusted = _self_signed(server, home)
    with (server.data / "postgresql.conf").open("a") as settings:
        settings.write("ssl = on\n")
    (server.data / "pg_hba.conf").write_text("".join(f"{line}\n" for line in hba))
    server.restart()
    return trusted


def _self_signed(server: Server, home: Path) -> Path:
    """Give *server* a certificate for its address; return the file below *home* that clients trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, server.name)])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    for file, content in (
        (server.data / "server.crt", pem),
        (server.data / "server.key", key.private_bytes(serialization.Encoding.PEM, *form)),
    ):
        file.touch(0o600)
        file.write_bytes(content)
        owner = server.data.stat()
        os.chown(file, owner.st_uid, owner.st_gid)
    trusted = home / f"{server.name}.crt"
    trusted.write_bytes(pem)
    return trusted
