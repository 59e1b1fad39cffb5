"""No mapping in Envoy's configuration has a key twice: Envoy takes the last one in silence."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from backchannel.edge import strict_yaml

ROOT = Path(__file__).resolve().parent.parent


def faults(folder: Path) -> list[str]:
    """What is wrong with the YAML files in a folder, a line each."""
    found = []
    for path in sorted(folder.rglob("*.yaml")):
        try:
            strict_yaml.load(path)
        except (ValueError, yaml.YAMLError) as error:
            found.append(str(error).replace(f"{ROOT}/", ""))
    return found


if __name__ == "__main__":
    problems = faults(ROOT / "envoy")
    print("\n".join(problems) or "check_yaml: nothing found")
    sys.exit(bool(problems))
