"""The chat page and what belongs to it: files of this package, read once.

What is not in the table is not served, so no path leads anywhere else.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Final, Self

from backchannel.errors import BackchannelError, Reason

PAGE: Final = ""
FOLDER: Final = "assets"

# By the end of the name. Text is UTF-8 in all our files.
CONTENT_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "css": "text/css; charset=utf-8",
        "html": "text/html; charset=utf-8",
        "ico": "image/x-icon",
        "js": "text/javascript; charset=utf-8",
        "json": "application/json",
        "png": "image/png",
        "svg": "image/svg+xml",
        "txt": "text/plain; charset=utf-8",
        "wasm": "application/wasm",
        "webmanifest": "application/manifest+json",
        "webp": "image/webp",
        "woff2": "font/woff2",
    }
)
_COMPRESSIBLE: Final = frozenset({"css", "html", "js", "json", "svg", "txt", "wasm", "webmanifest"})

# A name with a digest of its content, as Vite makes them (8 characters of base64url): never other
# content. What looks like a word is taken for one, and asked for again.
_HASHED: Final = re.compile(r"-(?=[^.]*[0-9A-Z_])[A-Za-z0-9_-]{8}\.[a-z0-9]+$")
IMMUTABLE: Final = "public, max-age=31536000, immutable"
# Kept, but asked for each time whether it is still the same.
REVALIDATE: Final = "no-cache"

# Nothing from elsewhere, nothing inline, no frame around it.
# Source: https://www.w3.org/TR/CSP3/
PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)
# An asset that is opened by itself (an SVG may hold scripts) can do nothing at all.
ASSET_POLICY: Final = "default-src 'none'; frame-ancestors 'none'; sandbox"

SECURITY_HEADERS: Final = (
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is served.

    Attributes:
        content_type: What it is.
        data: What is in it.
        compressed: The same, gzipped; None where that saves nothing.
        etag: Names this content.
        headers: What else a browser is told about it.
    """

    content_type: str
    data: bytes
    compressed: bytes | None
    etag: str
    headers: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, name: str, data: bytes) -> Self:
        """A file's name and content.

        Raises:
            ValueError: There is no content type for the name.
        """
        suffix = name.rpartition(".")[2]
        if suffix not in CONTENT_TYPES:
            raise ValueError(f"{name}: add its content type to {__name__}")
        compressed = gzip.compress(data, mtime=0) if suffix in _COMPRESSIBLE else data
        is_page = suffix == "html"
        etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        headers = (
            ("cache-control", IMMUTABLE if _HASHED.search(name) else REVALIDATE),
            ("etag", etag),
            ("vary", "accept-encoding"),
            ("content-security-policy", PAGE_POLICY if is_page else ASSET_POLICY),
            *SECURITY_HEADERS,
        )
        smaller = compressed if len(compressed) < len(data) else None
        return cls(CONTENT_TYPES[suffix], data, smaller, etag, headers)


class Assets:
    """All there are.

    Args:
        files: By their path below `/assets/`; the page itself under the empty one.
    """

    def __init__(self, files: Mapping[str, Asset]) -> None:
        self._files = MappingProxyType(dict(files))

    @classmethod
    def load(cls) -> Self:
        """Those in this package."""
        static = resources.files("backchannel_gateway") / "static"
        files = {PAGE: Asset.of("index.html", (static / "index.html").read_bytes())}
        folder = static / FOLDER
        if folder.is_dir():
            _collect(folder, "", files)
        return cls(files)

    def __getitem__(self, path: str) -> Asset:
        """The asset at a path.

        Raises:
            BackchannelError: `ASSET_NOT_FOUND`.
        """
        try:
            return self._files[path]
        except KeyError:
            raise BackchannelError(
                Reason.ASSET_NOT_FOUND, "the page has no such file; begin at /", field="path"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)


def _collect(folder: Traversable, prefix: str, files: dict[str, Asset]) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            _collect(entry, f"{prefix}{entry.name}/", files)
        else:
            files[prefix + entry.name] = Asset.of(entry.name, entry.read_bytes())
