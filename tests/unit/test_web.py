"""What is looked at in a built page, without building one."""

from __future__ import annotations

import json
import re

from scripts import web


def test_a_file_that_differs_or_is_in_one_place_only_is_named():
    built = {"index.html": b"a", "assets/new.js": b"b", "assets/same.css": b"c"}
    checked_in = {"index.html": b"A", "assets/old.js": b"b", "assets/same.css": b"c"}
    assert web.differences(built, checked_in) == ["assets/new.js", "assets/old.js", "index.html"]


def test_a_bundled_package_without_a_notice_is_named():
    listed = b"# Licenses\n\n## preact - 11.2.0 (MIT)\n\n## left-pad - 1.0.0 (MIT)\n"
    assert web.unnamed({"assets/licenses.txt": listed}) == ["left-pad 1.0.0"]
    assert web.unnamed({}) != []


def test_the_page_is_within_its_budget():
    page = web.files(web.STATIC)
    assert "index.html" in page
    assert web.size(page) <= web.MOST_BYTES


def test_the_page_has_nothing_inline_and_nothing_from_elsewhere():
    page = (web.STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses
    assert all(address.startswith("/assets/") for address in addresses)


def test_the_lock_names_no_registry():
    lock = json.loads((web.WEB / "package-lock.json").read_text(encoding="utf-8"))
    named = [about.get("resolved", "") for about in lock["packages"].values()]
    assert not [address for address in named if address.startswith("http")]
    assert all(
        "integrity" in about
        for path, about in lock["packages"].items()
        if path.startswith("node_modules/") and not about.get("link")
    )
