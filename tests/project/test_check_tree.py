"""What may not be checked in is found, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import check_tree

# Put together here, for this file is checked too.
BAD = {
    "index": "see https://" + "pypi" + ".org/simple",
    "option": "--extra-" + "index-url somewhere",
    "lock": '{"resolved"' + ': "https://example.org/x.tgz"}',
    "home": "cd /" + "root/src",
    "user": "cd /" + "home/ada/src",
    "conflict": "<" * 7 + " HEAD",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_a_forbidden_text_is_found(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_tree, "ROOT", tmp_path)
    path = tmp_path / "file.txt"
    path.write_text(f"good\n{text}\n", encoding="utf-8")
    (fault,) = check_tree.faults(path)
    assert fault.startswith("file.txt:2: ")


def test_a_file_that_is_too_large_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_tree, "ROOT", tmp_path)
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(check_tree.MAX_BYTES + 1))
    assert len(check_tree.faults(path)) == 1


def test_ordinary_paths_and_addresses_are_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_tree, "ROOT", tmp_path)
    path = tmp_path / "README.md"
    path.write_text("https://grpc.io/docs\nsrv/root/x\nGET /v1/sessions\n", encoding="utf-8")
    assert check_tree.faults(path) == []
