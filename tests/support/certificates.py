"""A certificate for a test."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import trustme

HERE = ("localhost", "127.0.0.1")


def self_signed(folder: Path, *names: str, not_after: datetime | None = None) -> tuple[str, str]:
    """A certificate of this machine, or of these names, and its key: PEM files.

    Who vouches for it is in `authority.crt` beside them.
    """
    authority = trustme.CA()
    issued = authority.issue_cert(*(names or HERE), not_after=not_after)
    certificate, key = folder / "tls.crt", folder / "tls.key"
    for pem in issued.cert_chain_pems:
        pem.write_to_path(str(certificate), append=True)
    issued.private_key_pem.write_to_path(str(key))
    authority.cert_pem.write_to_path(str(folder / "authority.crt"))
    return str(certificate), str(key)
