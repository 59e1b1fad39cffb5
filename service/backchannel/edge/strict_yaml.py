"""YAML as Envoy should have read it: a key that stands twice is an error.

Envoy itself takes the last one in silence, and so do most readers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


class DuplicateKeyError(ValueError):
    """A mapping has a key twice; the message names the place."""


class _Loader(yaml.SafeLoader):
    """The safe loader, but strict."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Make a dict of a mapping."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                mark = key_node.start_mark
                raise DuplicateKeyError(
                    f"{mark.name}:{mark.line + 1}: the key {key} stands here a second time"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def load(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        DuplicateKeyError: A key stands twice.
        yaml.YAMLError: It is not YAML.
        ValueError: It is no mapping.
        OSError: It cannot be read.
    """
    with path.open(encoding="utf-8") as file:
        loaded = yaml.load(file, _Loader)  # noqa: S506 - a safe loader, made stricter
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: must hold a mapping")
    return loaded
