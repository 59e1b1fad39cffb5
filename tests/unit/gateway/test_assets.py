"""The page's files as they are served."""

from __future__ import annotations

import gzip

import pytest

from backchannel.errors import BackchannelError, Reason
from backchannel_gateway.assets import IMMUTABLE, REVALIDATE, Asset, Assets


@pytest.mark.parametrize(
    ("name", "content_type", "cache"),
    [
        ("index.html", "text/html; charset=utf-8", REVALIDATE),
        ("index-BJk3_x9Q.js", "text/javascript; charset=utf-8", IMMUTABLE),
        ("index-BJk3-x9Q.css", "text/css; charset=utf-8", IMMUTABLE),
        # Words are no digest.
        ("tool-settings.js", "text/javascript; charset=utf-8", REVALIDATE),
        ("tool-call.js", "text/javascript; charset=utf-8", REVALIDATE),
        ("icon.svg", "image/svg+xml", REVALIDATE),
        ("font-0123abcd.woff2", "font/woff2", IMMUTABLE),
    ],
)
def test_types_and_caching(name: str, content_type: str, cache: str) -> None:
    asset = Asset.of(name, b"x")
    assert asset.content_type == content_type
    assert dict(asset.headers)["cache-control"] == cache


def test_a_file_of_an_unknown_type_is_noticed_at_the_start() -> None:
    with pytest.raises(ValueError, match=r"secrets\.exe: add its content type"):
        Asset.of("secrets.exe", b"")


def test_text_is_compressed_and_pictures_are_not() -> None:
    data = b"function () {}" * 100
    asset = Asset.of("a.js", data)
    assert asset.compressed is not None
    assert gzip.decompress(asset.compressed) == data
    assert Asset.of("a.png", data).compressed is None
    assert Asset.of("a.js", b"").compressed is None


def test_other_content_has_another_etag() -> None:
    assert Asset.of("a.js", b"1").etag != Asset.of("a.js", b"2").etag


def test_only_the_page_may_run_scripts() -> None:
    page = dict(Asset.of("index.html", b"").headers)["content-security-policy"]
    picture = dict(Asset.of("a.svg", b"").headers)["content-security-policy"]
    assert "script-src 'self'" in page
    assert "sandbox" in picture
    assert "script-src" not in picture


@pytest.mark.parametrize("path", ["no-such.js", "../doors.py", "/etc/passwd", "index.html", "."])
def test_nothing_else_is_there(path: str) -> None:
    with pytest.raises(BackchannelError) as caught:
        Assets.load()[path]
    assert caught.value.reason is Reason.ASSET_NOT_FOUND


def test_the_page_is_there() -> None:
    assert b"<!doctype html>" in Assets.load()[""].data.lower()
