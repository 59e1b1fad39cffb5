"""What no checked-in file may hold: addresses of package indexes, paths of somebody's machine.

A lock that names an index breaks for everybody behind another one, and a home
directory in a file means that it works on one machine only.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# More than the house model, which is the largest file there is reason for.
MAX_BYTES = 7 * 1024 * 1024

# Written so that this file does not match itself.
FORBIDDEN = {
    "address of a package index": re.compile(
        r"(?:files\.)?pythonhosted\.org|\bpypi\.org\b|registry\.npmjs|registry\.yarnpkg"
        r"|proxy\.golang\.org|static\.crates\.io|\bdeb\.debian\.org|\bbuf\.build/"
    ),
    "option that names a package index": re.compile(
        r"^\s*--(?:extra-)?index-url|^\s*--(?:find-links|trusted-host)\b", re.MULTILINE
    ),
    "download address in a lock": re.compile(r'"resolved":\s*"http'),
    "path of somebody's machine": re.compile(r"(?<![\w.])/(?:root|home/\w+|Users/\w+)/"),
    "merge conflict": re.compile(r"^(?:<{7}|>{7}) ", re.MULTILINE),
}


def checked_in() -> list[Path]:
    """Every file that git tracks, or would with `git add .`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    paths = {ROOT / name.decode() for name in listed.split(b"\0") if name}
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


def faults(path: Path) -> list[str]:
    """What is wrong with one file, a line each."""
    content = path.read_bytes()
    name = path.relative_to(ROOT)
    if len(content) > MAX_BYTES:
        return [f"{name}: {len(content)} bytes, and {MAX_BYTES} is the most"]
    if b"\0" in content:
        return []
    text = content.decode(errors="replace")
    return [
        f"{name}:{text.count(chr(10), 0, found.start()) + 1}: {what}: {found.group().strip()}"
        for what, pattern in FORBIDDEN.items()
        for found in pattern.finditer(text)
    ]


if __name__ == "__main__":
    problems = [fault for path in checked_in() for fault in faults(path)]
    print("\n".join(problems) or "check_tree: nothing found")
    sys.exit(bool(problems))
