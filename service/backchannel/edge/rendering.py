"""From `envoy/envoy.yaml` to the configuration of one Envoy: addresses, names, origins, overlays.

An overlay is a YAML file laid over the other. Mappings are merged key by key; lists of things with
a `name` are merged by it; all else is replaced, and so is a thing of another `@type`. A thing with
`$like: NAME` begins as a copy of its neighbour of that name.
"""

from __future__ import annotations

import copy
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from backchannel.edge import strict_yaml
from backchannel.edge.descriptors import descriptor_set
from backchannel.listen import Address

CONFIG_NAME: Final = "envoy.yaml"
DESCRIPTORS_NAME: Final = "backchannel.pb"
ANY_HOST: Final = "*"
LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1", "[::1]")

_LIKE: Final = "$like"
_TYPE: Final = "@type"
# What the service's own clusters begin with.
_CLUSTERS: Final = "backchannel"
_HCM: Final = "envoy.filters.network.http_connection_manager"
_CORS: Final = "envoy.filters.http.cors"
_LUA: Final = "envoy.filters.http.lua"
_TLS_FILES: Final = (
    "--tls-cert and --tls-key (of `backchannel serve`: edge_tls_certificate and edge_tls_key)"
)
# Where an overlay may have its certificate from.
_CERTIFICATES: Final = (
    "tls_certificates",
    "tls_certificate_sds_secret_configs",
    "tls_certificate_provider_instance",
    "custom_tls_certificate_selector",
)
_TRANSCODER: Final = "envoy.filters.http.grpc_json_transcoder"

Tree = dict[str, Any]


class EdgeError(Exception):
    """Envoy cannot be had, or not like this; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What differs from one Envoy to the next.

    Attributes:
        listen: Where browsers and clients come in.
        upstreams: Where the service is; several are several replicas.
        admin: Envoy's own door, which lets in whoever reaches it.
        descriptors: The path of the descriptor set, as Envoy will see it.
        hosts: The names it answers to, without a port. A page of another name that points here
            (DNS rebinding) gets nothing. `*` for any.
        origins: Pages of other origins that may use it, as `https://chat.example`.
        overlays: Names of files in `envoy/overlays/`, or paths.
        tls_certificate: A PEM file with the chain, for the overlay `tls`.
        tls_key: A PEM file with its key.
        linux: Whether it runs there; socket options have other numbers elsewhere.
    """

    listen: Address
    upstreams: tuple[Address, ...]
    admin: Address
    descriptors: str
    hosts: tuple[str, ...] = (ANY_HOST,)
    origins: tuple[str, ...] = ()
    overlays: tuple[str, ...] = ()
    tls_certificate: str = ""
    tls_key: str = ""
    linux: bool = True


def template_folder() -> Path:
    """Where envoy.yaml and its overlays are: in the package, or in the checkout around it.

    Raises:
        EdgeError: The installation lacks them.
    """
    here = Path(__file__).resolve()
    for folder in (here.parent / "envoy", here.parents[3] / "envoy"):
        if (folder / CONFIG_NAME).is_file():
            return folder
    raise EdgeError("this installation lacks envoy.yaml; install Backchannel again")


def write(folder: Path, placement: Placement) -> Path:
    """Write the configuration and the descriptor set into a folder.

    Returns:
        The configuration's path.

    Raises:
        EdgeError: An overlay cannot be used, or a name cannot be resolved.
    """
    config = folder / CONFIG_NAME
    config.write_text(to_yaml(render(placement)), encoding="utf-8")
    (folder / DESCRIPTORS_NAME).write_bytes(descriptor_set())
    return config


def to_yaml(tree: Tree) -> str:
    """A configuration as YAML."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100)


def render(placement: Placement) -> Tree:
    """The whole configuration.

    Raises:
        EdgeError: An overlay cannot be used, or a name cannot be resolved.
    """
    folder = template_folder()
    tree = _own(strict_yaml.load(folder / CONFIG_NAME))
    for overlay in placement.overlays:
        tree = merge(tree, _overlay(folder, overlay))
    if ANY_HOST not in placement.hosts:
        tree = merge(tree, _overlay(folder, "hosts"))
    _place(tree, placement)
    return tree


def merge(base: Any, over: Any) -> Any:
    """Lay one tree over another; see above."""
    if isinstance(base, dict) and isinstance(over, dict):
        if _TYPE in base and over.get(_TYPE, base[_TYPE]) != base[_TYPE]:
            return over
        return base | {
            key: merge(base[key], value) if key in base else value for key, value in over.items()
        }
    if _named(base) and _named(over):
        merged = {item["name"]: item for item in base}
        for item in over:
            begin = merged.get(item["name"])
            if _LIKE in item:
                begin = copy.deepcopy(merged[item[_LIKE]])
                item = {key: value for key, value in item.items() if key != _LIKE}
            merged[item["name"]] = item if begin is None else merge(begin, item)
        return list(merged.values())
    return over


def _named(tree: Any) -> bool:
    """Whether it is a list of things with names; socket options have numbers there."""
    return (
        isinstance(tree, list)
        and bool(tree)
        and all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in tree)
    )


def _overlay(folder: Path, name: str) -> Tree:
    path = Path(name) if name.endswith(".yaml") else folder / "overlays" / f"{name}.yaml"
    try:
        return _own(strict_yaml.load(path))
    except OSError as error:
        known = ", ".join(sorted(file.stem for file in (folder / "overlays").glob("*.yaml")))
        raise EdgeError(
            f"the overlay {name} cannot be read: {error.strerror}; give the path of a .yaml file,"
            f" or one of {known}"
        ) from None
    except (ValueError, yaml.YAMLError) as error:
        raise EdgeError(f"the overlay {name} is no good: {error}") from None


def _own(tree: Tree) -> Tree:
    """The same without shared parts, which YAML's aliases make."""
    owned: Tree = json.loads(json.dumps(tree))
    return owned


def _place(tree: Tree, placement: Placement) -> None:
    """Put in what the placement says."""
    tree["admin"]["address"] = _address(placement.admin)
    for cluster in tree["static_resources"]["clusters"]:
        if cluster["name"].startswith(_CLUSTERS):  # An overlay may bring others.
            _place_cluster(cluster, placement.upstreams)
    for listener in tree["static_resources"]["listeners"]:
        listener["address"]["socket_address"].update(_socket(placement.listen))
        if not placement.linux:
            listener.pop("socket_options")
        for chain in listener["filter_chains"]:
            _place_tls(chain, placement)
            manager = _by_name(chain["filters"], _HCM)["typed_config"]
            _by_name(manager["http_filters"], _TRANSCODER)["typed_config"]["proto_descriptor"] = (
                placement.descriptors
            )
            host = _by_name(manager["route_config"]["virtual_hosts"], "backchannel")
            host["domains"] = list(placement.hosts)
            per_filter = host["typed_per_filter_config"]
            per_filter[_CORS]["allow_origin_string_match"] = [
                {"exact": origin} for origin in placement.origins
            ]
            per_filter[_LUA]["filter_context"]["origins"] = list(placement.origins)


def _place_cluster(cluster: Tree, upstreams: tuple[Address, ...]) -> None:
    endpoints = [{"endpoint": {"address": _address(address)}} for address in upstreams]
    cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]
    if any(address.port is None for address in upstreams):
        # Only names can be asked about again; a path is what it is.
        cluster["type"] = "STATIC"


def _place_tls(chain: Tree, placement: Placement) -> None:
    """Put the certificate in where TLS is spoken.

    Raises:
        EdgeError: There is none where one is needed, or half of one, or no use for it.
    """
    if bool(placement.tls_certificate) != bool(placement.tls_key):
        raise EdgeError(f"a certificate and its key go together; give {_TLS_FILES}")
    transport = chain.get("transport_socket", {}).get("typed_config", {})
    context = transport.get("downstream_tls_context", transport).get("common_tls_context")
    if not placement.tls_certificate:
        if context is None or any(context.get(key) for key in _CERTIFICATES):
            return
        quic = "QuicDownstreamTransport" in transport[_TYPE]
        raise EdgeError(
            f"{'HTTP/3' if quic else 'TLS'} needs a certificate and its key, as PEM files; give"
            f" {_TLS_FILES}"
        )
    if context is None:
        raise EdgeError("a TLS certificate is of no use without the overlay tls")
    context["tls_certificates"] = [
        {
            "certificate_chain": {"filename": placement.tls_certificate},
            "private_key": {"filename": placement.tls_key},
        }
    ]


def _by_name(items: list[Tree], name: str) -> Tree:
    return next(item for item in items if item["name"] == name)


def _address(address: Address) -> Tree:
    if address.port is None:
        return {"pipe": {"path": address.host}}
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def _socket(address: Address) -> Mapping[str, object]:
    """An address to listen at: Envoy takes no names there."""
    if address.port is None:
        raise EdgeError(f"{address}: browsers cannot reach a Unix socket; write host:port")
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise EdgeError(f"cannot listen on {address}: {error.strerror}") from None
    return {"address": found[0][4][0], "port_value": address.port}
