"""Laying overlays over the configuration, and putting a placement in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backchannel.edge import strict_yaml
from backchannel.edge.rendering import EdgeError, Placement, merge, render, to_yaml
from backchannel.listen import Address


def placement(**more: Any) -> Placement:
    given = {
        "listen": Address("127.0.0.1", 8080),
        "upstreams": (Address("127.0.0.1", 50051),),
        "admin": Address("127.0.0.1", 9901),
        "descriptors": "backchannel.pb",
        **more,
    }
    return Placement(**given)


@pytest.mark.parametrize(
    ("base", "over", "merged"),
    [
        ({"a": 1, "b": 2}, {"b": 3}, {"a": 1, "b": 3}),
        ({"a": {"b": 1}}, {"a": {"c": 2}}, {"a": {"b": 1, "c": 2}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ([{"name": "a", "x": 1}], [{"name": "a", "y": 2}], [{"name": "a", "x": 1, "y": 2}]),
        ([{"name": "a"}], [{"name": "b"}], [{"name": "a"}, {"name": "b"}]),
        # A number is no name, and nothing at all is nothing.
        ([{"name": 25, "x": 1}], [{"name": 25}], [{"name": 25}]),
        ([{"name": "a"}], [], []),
        # Another type has other fields.
        ({"@type": "a", "x": 1}, {"@type": "b"}, {"@type": "b"}),
        ({"@type": "a", "x": 1}, {"y": 2}, {"@type": "a", "x": 1, "y": 2}),
        (
            [{"name": "a", "x": {"y": 1}}],
            [{"name": "b", "$like": "a", "x": {"z": 2}}],
            [{"name": "a", "x": {"y": 1}}, {"name": "b", "x": {"y": 1, "z": 2}}],
        ),
    ],
)
def test_merging(base: Any, over: Any, merged: Any) -> None:
    assert merge(base, over) == merged


def test_nothing_to_place_changes_only_what_is_placed(tmp_path: Path) -> None:
    path = tmp_path / "rendered.yaml"
    path.write_text(to_yaml(render(placement())), encoding="utf-8")
    again = strict_yaml.load(path)
    assert again == render(placement())


def test_replicas_and_sockets() -> None:
    tree = render(placement(upstreams=(Address("a", 1), Address("b", 2))))
    for cluster in tree["static_resources"]["clusters"]:
        (group,) = cluster["load_assignment"]["endpoints"]
        assert [
            one["endpoint"]["address"]["socket_address"]["address"] for one in group["lb_endpoints"]
        ] == ["a", "b"]
        assert cluster["type"] == "STRICT_DNS"
    tree = render(placement(upstreams=(Address("/run/bc.sock", None),)))
    for cluster in tree["static_resources"]["clusters"]:
        assert cluster["type"] == "STATIC"


def test_names_to_listen_at_are_resolved() -> None:
    tree = render(placement(listen=Address("localhost", 80)))
    (listener,) = tree["static_resources"]["listeners"]
    assert listener["address"]["socket_address"]["address"] in ("127.0.0.1", "::1")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"overlays": ("no-such",)}, "one of hosts, http3, tls"),
        ({"listen": Address("/run/bc.sock", None)}, "host:port"),
        ({"listen": Address("no.such.host.invalid", 80)}, "cannot listen"),
        ({"tls_certificate": "a.pem", "tls_key": "b.pem"}, "overlay tls"),
        ({"tls_certificate": "a.pem", "overlays": ("tls",)}, "go together; give --tls-cert and"),
        ({"tls_key": "b.pem", "overlays": ("tls",)}, "go together; give --tls-cert and"),
        (
            {"overlays": ("tls",)},
            "TLS needs a certificate and its key, .* --tls-cert and --tls-key",
        ),
        ({"overlays": ("http3",)}, "HTTP/3 needs a certificate .* edge_tls_certificate and edge_"),
    ],
)
def test_what_cannot_be_is_said(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(EdgeError, match=said):
        render(placement(**wrong))


def test_a_certificate_may_come_from_an_overlay_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "sds.yaml"
    path.write_text(
        "static_resources: {listeners: [{name: edge, filter_chains: [{name: main,"
        " transport_socket: {typed_config: {common_tls_context:"
        " {tls_certificate_sds_secret_configs: [{name: ours}]}}}}]}]}\n"
    )
    (listener,) = render(placement(overlays=("tls", str(path))))["static_resources"]["listeners"]
    context = listener["filter_chains"][0]["transport_socket"]["typed_config"]
    assert context["common_tls_context"]["tls_certificate_sds_secret_configs"] == [{"name": "ours"}]


def test_an_overlay_must_be_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("[1]\n")
    with pytest.raises(EdgeError, match="must hold a mapping"):
        render(placement(overlays=(str(path),)))


def test_elsewhere_than_on_linux_there_are_no_socket_options() -> None:
    (listener,) = render(placement(linux=False))["static_resources"]["listeners"]
    assert "socket_options" not in listener
