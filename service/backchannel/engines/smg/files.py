"""The files that a model's tokenizer and chat template are made of, from a server or a folder.

They are kept in memory and never written, so an archive cannot place a file anywhere; only files
whose names are known are taken out of it, and no more of them than a tokenizer has.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

WANTED: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
)
"""What is read; the rest of a bundle is of no use here."""

MOST_ARCHIVE_BYTES: Final = 2**27
MOST_FILE_BYTES: Final = 2**27
"""The largest known `tokenizer.json` has about a quarter of that."""


class BadFilesError(Exception):
    """They cannot be used; the message says why, for whoever runs the server."""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The files by name.

    Attributes:
        contents: Those of `WANTED` that there are.
        sha256: Of the archive they came in; empty if there was none.
    """

    contents: Mapping[str, bytes]
    sha256: str = ""

    @classmethod
    def of_archive(cls, data: bytes, sha256: str) -> TokenizerFiles:
        """Take them out of a zip archive.

        Args:
            data: The archive.
            sha256: What the server says that its hash is, in hexadecimal.

        Raises:
            BadFilesError: It is not what was sent, or no archive, or too large.
        """
        found = hashlib.sha256(data).hexdigest()
        if found != sha256.lower():
            raise BadFilesError("the tokenizer's archive is damaged: its SHA-256 is another")
        contents: dict[str, bytes] = {}
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for info in archive.infolist():
                    if info.filename not in WANTED or info.filename in contents:
                        continue
                    with archive.open(info) as file:
                        # What the archive says of sizes is not relied upon.
                        content = file.read(MOST_FILE_BYTES + 1)
                    if len(content) > MOST_FILE_BYTES:
                        raise BadFilesError(f"{info.filename} in the archive is too large")
                    contents[info.filename] = content
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            NotImplementedError,  # A compression that this Python has not.
            RuntimeError,  # A password.
        ) as error:
            raise BadFilesError(f"the tokenizer's archive cannot be read ({error})") from error
        return cls(contents, found)

    @classmethod
    def of_folder(cls, folder: Path) -> TokenizerFiles:
        """Read them from a folder.

        Raises:
            BadFilesError: There is no such folder, or a file cannot be read or is too large.
        """
        folder = folder.expanduser()
        if not folder.is_dir():
            raise BadFilesError(f"{folder} is no folder")
        contents: dict[str, bytes] = {}
        for name in WANTED:
            try:
                with (folder / name).open("rb") as file:
                    content = file.read(MOST_FILE_BYTES + 1)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise BadFilesError(f"{folder / name} cannot be read ({error.strerror})") from error
            if len(content) > MOST_FILE_BYTES:
                raise BadFilesError(f"{folder / name} is too large")
            contents[name] = content
        return cls(contents)

    def text(self, name: str) -> str | None:
        """A file's text; None if there is no such file.

        Raises:
            BadFilesError: It is not UTF-8.
        """
        content = self.contents.get(name)
        if content is None:
            return None
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise BadFilesError(f"{name} is not UTF-8") from None

    def json(self, name: str) -> dict[str, Any]:
        """A file's JSON object; an empty one if there is no such file.

        Raises:
            BadFilesError: It is not one.
        """
        text = self.text(name)
        if text is None:
            return {}
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise BadFilesError(f"{name} is not a JSON object")
        return value
