"""Each setting of envoy.yaml that something depends on, with the reason.

The other tests here show what the settings do; these say why they must not be changed lightly.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from backchannel.edge import binary, strict_yaml
from backchannel.edge.descriptors import descriptor_set
from backchannel.edge.rendering import EdgeError, render, template_folder, write
from backchannel.host.config import HostConfig
from backchannel.listen import Address
from backchannel.rpc.server import SERVICES
from backchannel.rpc.wire import MAX_TRANSPORT_BYTES
from tests.support.certificates import self_signed
from tests.support.edge import placement
from tests.support.server import config as serve_config

SERVICE = Address("127.0.0.1", 50051)
Tree = dict[str, Any]


@pytest.fixture
def tree() -> Tree:
    """The file as it is."""
    return strict_yaml.load(template_folder() / "envoy.yaml")


def listener(tree: Tree) -> Tree:
    (one,) = tree["static_resources"]["listeners"]
    return one  # type: ignore[no-any-return]  # what YAML holds


def manager(tree: Tree) -> Tree:
    (chain,) = listener(tree)["filter_chains"]
    (one,) = chain["filters"]
    return one["typed_config"]  # type: ignore[no-any-return]  # what YAML holds


def http_filter(tree: Tree, name: str) -> Tree:
    (one,) = [
        one["typed_config"]
        for one in manager(tree)["http_filters"]
        if one["name"] == f"envoy.filters.http.{name}"
    ]
    return one  # type: ignore[no-any-return]  # what YAML holds


def virtual_host(tree: Tree) -> Tree:
    (one,) = manager(tree)["route_config"]["virtual_hosts"]
    return one  # type: ignore[no-any-return]  # what YAML holds


def routes(tree: Tree) -> Iterator[Tree]:
    yield from virtual_host(tree)["routes"]


def clusters(tree: Tree) -> Iterator[Tree]:
    yield from tree["static_resources"]["clusters"]


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])


# --- who reaches it ---------------------------------------------------------------------------


def test_admin_is_on_loopback_only(tree: Tree) -> None:
    # It stops Envoy for whoever asks.
    assert tree["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"


def test_it_listens_on_loopback_until_told_otherwise(tree: Tree) -> None:
    assert listener(tree)["address"]["socket_address"] == {
        "address": "127.0.0.1",
        "port_value": 8080,
    }


def test_cors_is_a_list_of_origins_and_empty(tree: Tree) -> None:
    per_filter = virtual_host(tree)["typed_per_filter_config"]
    assert per_filter["envoy.filters.http.cors"]["allow_origin_string_match"] == []
    assert per_filter["envoy.filters.http.lua"]["filter_context"]["origins"] == []
    # A preflight that nobody allowed is answered here and not proxied.
    assert per_filter["envoy.filters.http.cors"]["forward_not_matching_preflights"] is False


# --- protocols --------------------------------------------------------------------------------


def test_one_listener_for_http1_and_h2c(tree: Tree) -> None:
    assert manager(tree)["codec_type"] == "AUTO"


def test_http_1_0_is_taken(tree: Tree) -> None:
    # What nginx speaks by default to whatever is behind it.
    assert manager(tree)["http_protocol_options"]["accept_http_10"] is True


def test_filters_in_their_order(tree: Tree) -> None:
    order = [
        one["name"].removeprefix("envoy.filters.http.") for one in manager(tree)["http_filters"]
    ]
    # CORS answers preflights before anything else; Lua sees answers as they leave; gRPC-Web has
    # made gRPC of its calls before the transcoder looks; the router is last.
    assert order == ["cors", "lua", "buffer", "grpc_web", "grpc_json_transcoder", "router"]


# --- times ------------------------------------------------------------------------------------


def test_no_route_cuts_a_stream(tree: Tree) -> None:
    for route in routes(tree):
        # By default 15 s.
        assert route["route"]["timeout"] == "0s"
        # And none for streams; a client's grpc-timeout goes on to the service, whose ending has a
        # status, where Envoy's is a reset.
        assert route["route"]["max_stream_duration"] == {"max_stream_duration": "0s"}
    assert manager(tree)["request_timeout"] == "0s"


def test_idle_streams_are_cut_above_our_heartbeat(tree: Tree) -> None:
    idle_s = seconds(manager(tree)["stream_idle_timeout"])
    # Finite, or what is dead stays; and a heartbeat may be lost on the way.
    assert 3 * HostConfig().heartbeat_s <= idle_s <= 120


def test_dead_peers_are_noticed(tree: Tree) -> None:
    assert "connection_keepalive" in manager(tree)["http2_protocol_options"]
    allowed_s = 0.5  # See rpc/settings.py; more often is ENHANCE_YOUR_CALM.
    for cluster in clusters(tree):
        keepalive = http2(cluster)["connection_keepalive"]
        assert seconds(keepalive["interval"]) > allowed_s


# --- sizes ------------------------------------------------------------------------------------


def http2(cluster: Tree) -> Tree:
    (options,) = cluster["typed_extension_protocol_options"].values()
    return options["explicit_http_config"]["http2_protocol_options"]  # type: ignore[no-any-return]


def test_a_slow_reader_holds_little(tree: Tree) -> None:
    # By default 1 MiB a connection and 16 MiB a stream, for each who does not read.
    assert listener(tree)["per_connection_buffer_limit_bytes"] == 32768
    for cluster in clusters(tree):
        assert cluster["per_connection_buffer_limit_bytes"] == 32768
        assert http2(cluster)["initial_stream_window_size"] == 65536


def test_the_kernel_holds_little_of_it_too(tree: Tree) -> None:
    # By default it takes up to 4 MiB (tcp_wmem) that nobody reads.
    (option,) = listener(tree)["socket_options"]
    assert (option["level"], option["name"]) == (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
    assert option["int_value"] == 65536


def test_slow_readers_do_not_stop_the_others_of_their_connection(tree: Tree) -> None:
    for cluster in clusters(tree):
        options = http2(cluster)
        stuck = options["max_concurrent_streams"] * options["initial_stream_window_size"]
        assert options["initial_connection_window_size"] >= stuck


def test_bodies_may_be_larger_than_a_mebibyte(tree: Tree) -> None:
    transcoder = http_filter(tree, "grpc_json_transcoder")
    assert transcoder["max_request_body_size"] == MAX_TRANSPORT_BYTES
    # JSON writes a control character with six.
    assert transcoder["max_response_body_size"] == 6 * MAX_TRANSPORT_BYTES


def test_rest_bodies_are_bounded_and_nothing_else_is_gathered(tree: Tree) -> None:
    # The transcoder's own limit does not hold for what is not an HttpBody.
    name = "envoy.filters.http.buffer"
    assert virtual_host(tree)["typed_per_filter_config"][name]["disabled"] is True
    bounded = [route for route in routes(tree) if name in route.get("typed_per_filter_config", {})]
    assert [route["name"] for route in bounded] == ["rest"]
    limit = bounded[0]["typed_per_filter_config"][name]["buffer"]["max_request_bytes"]
    assert limit == MAX_TRANSPORT_BYTES


def test_circuit_breakers_are_above_the_services_own_limit(tree: Tree) -> None:
    # By default the 1,025th stream is refused, without a reason that anybody could read.
    for cluster in clusters(tree):
        for threshold in cluster["circuit_breakers"]["thresholds"]:
            assert threshold["max_requests"] > serve_config().max_calls
            assert threshold["max_pending_requests"] > serve_config().max_calls


def test_connections_are_bounded(tree: Tree) -> None:
    (monitor,) = tree["overload_manager"]["resource_monitors"]
    assert 1500 < monitor["typed_config"]["max_active_downstream_connections"] <= 65536


# --- where calls go ---------------------------------------------------------------------------


def test_only_what_was_never_seen_is_retried(tree: Tree) -> None:
    policy = virtual_host(tree)["retry_policy"]
    # `unavailable`, `5xx` or `reset` would repeat a Send.
    assert set(policy["retry_on"].split(",")) == {"connect-failure", "refused-stream"}
    (predicate,) = policy["retry_host_predicate"]
    assert predicate["name"] == "envoy.retry_host_predicates.previous_hosts"
    assert all("retry_policy" not in route["route"] for route in routes(tree))


def test_calls_about_a_session_go_to_its_host(tree: Tree) -> None:
    policies = {one["name"]: one["lb_policy"] for one in clusters(tree)}
    assert policies == {"backchannel": "MAGLEV", "backchannel_any": "LEAST_REQUEST"}
    by_session = [one for one in routes(tree) if one["route"]["cluster"] == "backchannel"]
    assert {one["match"]["prefix"] for one in by_session} == {
        "/backchannel.v1.ConversationService/",
        "/backchannel.v1.BrowserService/",
    }
    for route in by_session:
        by_header, by_path = route["route"]["hash_policy"]
        assert by_header == {"header": {"header_name": "x-session-id"}, "terminal": True}
        # Behind the transcoder the path is the method's; the id is in what it was.
        rewrite = by_path["header"]
        assert rewrite["header_name"] == "x-envoy-original-path"
        pattern = rewrite["regex_rewrite"]["pattern"]["regex"]
        for path in ("/v1/sessions/abc", "/v1/sessions/abc/events?x=1", "/v1/sessions/abc/frames"):
            assert re.sub(pattern, rewrite["regex_rewrite"]["substitution"], path) == "abc"


def test_calls_without_a_session_come_first(tree: Tree) -> None:
    # The first match wins, and theirs are within the prefixes of the others.
    names = [route["name"] for route in routes(tree)]
    assert names == ["rest", "create", "list", "asset", "conversation", "events", "other"]


def test_a_rest_path_has_a_route_that_proxies(tree: Tree) -> None:
    # CORS runs before the transcoder and does nothing without one.
    (rest,) = [route for route in routes(tree) if route["match"].get("prefix") == "/v1/"]
    assert rest["route"]["cluster"]
    assert http_filter(tree, "grpc_json_transcoder")["request_validation_options"] == {
        "reject_unknown_method": True,
        "reject_unknown_query_parameters": True,
        "reject_binding_body_field_collisions": True,
    }


def test_hosts_that_leave_are_noticed(tree: Tree) -> None:
    for cluster in clusters(tree):
        (check,) = cluster["health_checks"]
        assert check["grpc_health_check"] == {}
        assert seconds(check["interval"]) <= 2


# --- what it says -----------------------------------------------------------------------------


def test_errors_are_json_with_their_details(tree: Tree) -> None:
    transcoder = http_filter(tree, "grpc_json_transcoder")
    assert transcoder["convert_grpc_status"] is True
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptor_set()).file
    # Without the types of the details the body would be empty.
    assert "google/rpc/error_details.proto" in {file.name for file in files}
    known = {f"{file.package}.{service.name}" for file in files for service in file.service}
    assert set(SERVICES) | {"backchannel.v1.BrowserService"} <= known
    assert set(transcoder["services"]) <= known
    # Each after those that it imports, as a FileDescriptorSet is to be.
    seen: set[str] = set()
    for file in files:
        assert set(file.dependency) <= seen
        seen.add(file.name)


def test_json_is_canonical(tree: Tree) -> None:
    options = http_filter(tree, "grpc_json_transcoder")["print_options"]
    assert not any(options.values())


def test_nothing_says_that_it_is_envoy(tree: Tree) -> None:
    assert http_filter(tree, "router")["suppress_envoy_headers"] is True
    assert manager(tree)["server_header_transformation"] == "PASS_THROUGH"


def test_no_proxy_is_to_hold_grpc_web(tree: Tree) -> None:
    # nginx, as it comes, keeps all of an answer that does not ask for something else.
    script = http_filter(tree, "lua")["default_source_code"]["inline_string"]
    (of_web,) = re.findall(
        r'"application/grpc-web", 1, true\) == 1 then\n(.*?)\n +end\n', script, re.S
    )
    assert [line.strip() for line in of_web.splitlines() if "--" not in line] == [
        'headers:replace("x-accel-buffering", "no")',
        'headers:replace("cache-control", "no-store, no-transform")',
    ]


def test_grpcs_headers_are_kept_from_rest(tree: Tree) -> None:
    # Said to whoever does not speak it they are a leak, and some proxies trip over them.
    script = http_filter(tree, "lua")["default_source_code"]["inline_string"]
    (leaks,) = re.findall(r"local leaks = \{(.*?)\}", script, re.DOTALL)
    assert {"grpc-status", "grpc-message", "grpc-status-details-bin"} <= set(
        re.findall(r'"([^"]+)"', leaks)
    )


def test_errors_of_envoys_own_are_json_but_for_grpc(tree: Tree) -> None:
    first, *others = manager(tree)["local_reply_config"]["mappers"]
    # An EventSource gives up for ever at anything but 200.
    *_, accept = first["filter"]["and_filter"]["filters"]
    assert accept["header_filter"]["header"]["string_match"] == {"prefix": "text/event-stream"}
    assert first["status_code"] == 200
    for mapper in others:
        found = json.dumps(mapper["filter"]["and_filter"]["filters"])
        # gRPC and gRPC-Web, unless it was REST before the transcoder.
        assert '{"prefix": "application/grpc"}, "invert_match": true' in found
        assert '{"name": "x-envoy-original-path", "present_match": true}' in found
        shape = set(mapper["body_format_override"]["json_format"])
        assert {"code", "message"} <= shape <= {"code", "message", "details"}


def test_the_access_log_is_json_of_what_was_asked_for(tree: Tree) -> None:
    (log,) = manager(tree)["access_log"]
    fields = log["typed_config"]["log_format"]["json_format"]
    # Behind the transcoder every call is a POST, and behind the Lua filter a HEAD is a GET.
    assert fields["method"] == "%DYNAMIC_METADATA(envoy.filters.http.lua:method)%"


def test_many_streams_fit_into_one_connection(tree: Tree) -> None:
    # A browser has one connection of HTTP/2, a proxy before us perhaps one for everybody.
    assert manager(tree)["http2_protocol_options"]["max_concurrent_streams"] >= 1500
    for cluster in clusters(tree):
        assert http2(cluster)["max_concurrent_streams"] >= 1500


def test_headers_have_to_come_soon(tree: Tree) -> None:
    # Connections that say nothing would fill the descriptors.
    assert 0 < seconds(manager(tree)["request_headers_timeout"]) <= 30


def test_the_access_log_has_no_whole_session_id(tree: Tree) -> None:
    # They are secrets. What the Lua filter leaves of the path has 8 characters of one.
    (log,) = manager(tree)["access_log"]
    fields = log["typed_config"]["log_format"]["json_format"]
    assert fields["path"] == "%DYNAMIC_METADATA(envoy.filters.http.lua:path)%"
    assert not [name for name, value in fields.items() if ":PATH" in value or "PATH(" in value]


def test_the_file_can_be_rendered_for_an_envoy_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "backchannel", "edge", "render", "--output", str(tmp_path)]
    command += ["--listen", "0.0.0.0:80", "--upstream", "a:1", "--upstream", "b:2"]
    command += ["--origin", "https://friend.example", "--descriptors", "/etc/envoy/backchannel.pb"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tree = strict_yaml.load(tmp_path / "envoy.yaml")
    assert listener(tree)["address"]["socket_address"]["port_value"] == 80
    assert http_filter(tree, "grpc_json_transcoder")["proto_descriptor"].startswith("/etc/envoy/")
    assert (tmp_path / "backchannel.pb").read_bytes() == descriptor_set()
    done = subprocess.run(
        [*command, "--overlay", "no"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Error: the overlay no cannot be read" in done.stderr


@pytest.mark.parametrize("wrong", ["chat.example", "*", "https://chat.example/", "null"])
def test_render_takes_the_origins_that_serve_takes(tmp_path: Path, wrong: str) -> None:
    for command in (
        ["edge", "render", "--output", str(tmp_path / "edge"), "--origin", wrong],
        ["serve", "--edge-origin", wrong],
    ):
        run = [sys.executable, "-m", "backchannel", *command]
        done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 2
        said = f"{wrong} is no origin; write scheme and host, and the port if it has one, as https:"
        assert said in done.stderr
    assert not (tmp_path / "edge").exists()


def test_render_tells_what_http3_needs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "backchannel", "edge", "render", "--output", str(tmp_path)]
    command += ["--overlay", "http3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Error: HTTP/3 needs a certificate and its key" in done.stderr
    assert "--tls-cert and --tls-key" in done.stderr
    command += ["--tls-cert", "/etc/tls.crt", "--tls-key", "/etc/tls.key"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # With the TLS over TCP that leads to it.
    tree = strict_yaml.load(tmp_path / "envoy.yaml")
    assert [one["name"] for one in tree["static_resources"]["listeners"]] == ["edge", "edge_http3"]
    text = (tmp_path / "envoy.yaml").read_text()
    assert text.count("filename: /etc/tls.crt") == text.count("filename: /etc/tls.key") == 2


# --- and that Envoy takes it ------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize(
    "overlays", [(), ("tls",), ("tls", "http3")], ids=["plain", "tls", "http3"]
)
@pytest.mark.parametrize("hosts", [("*",), ("localhost",)], ids=["any", "named"])
def test_envoy_finds_nothing_to_say_about_it(
    tmp_path: Path, overlays: tuple[str, ...], hosts: tuple[str, ...], certificate: tuple[str, str]
) -> None:
    pem, key = certificate if overlays else ("", "")
    path = write(
        tmp_path,
        placement(
            SERVICE,
            overlays=overlays,
            hosts=hosts,
            origins=("https://friend.example",),
            tls_certificate=pem,
            tls_key=key,
            descriptors=str(tmp_path / "backchannel.pb"),
        ),
    )
    command = [str(binary.find()), "--mode", "validate", "--config-path", str(path)]
    command += ["--disable-hot-restart", "--log-level", "warning"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # No warning either: a deprecated field is an error in some later version.
    assert done.stderr == ""


def test_a_key_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    # Envoy takes the last one in silence.
    overlay = tmp_path / "twice.yaml"
    overlay.write_text("admin:\n  address: {}\n  address: {}\n")
    with pytest.raises(EdgeError, match=r"twice.yaml:3: the key address stands here a second time"):
        render(placement(SERVICE, overlays=(str(overlay),)))
