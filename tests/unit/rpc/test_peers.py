"""Which callers are on this machine."""

from __future__ import annotations

import pytest

from backchannel.rpc.peers import is_local_peer


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("ipv4:127.0.0.1:50312", True),
        ("ipv4:127.8.8.8:50312", True),
        ("ipv6:[::1]:50312", True),
        ("ipv6:%5B::1%5D:50312", True),
        ("ipv6:[::ffff:127.0.0.1]:50312", True),
        ("unix:", True),
        ("unix:/run/backchannel.sock", True),
        ("ipv4:192.0.2.1:50312", False),
        ("ipv4:12.7.0.0:127", False),
        ("ipv6:[2001:db8::1]:50312", False),
        ("ipv6:[::ffff:192.0.2.1]:50312", False),
        ("ipv6:[fe80::1%25eth0]:50312", False),
        ("", False),
        ("127.0.0.1:50312", False),
        ("vsock:127.0.0.1:1", False),
    ],
)
def test_is_local_peer(peer: str, local: bool) -> None:
    assert is_local_peer(peer) is local
