"""A certificate for a test."""

from __future__ import annotations

from pathlib import Path

import trustme


def self_signed(folder: Path) -> tuple[str, str]:
    """A certificate of this machine, which is its own authority, and its key: PEM files."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    certificate, key = folder / "tls.crt", folder / "tls.key"
    for pem in issued.cert_chain_pems:
        pem.write_to_path(str(certificate), append=True)
    issued.private_key_pem.write_to_path(str(key))
    authority.cert_pem.write_to_path(str(folder / "authority.crt"))
    return str(certificate), str(key)
