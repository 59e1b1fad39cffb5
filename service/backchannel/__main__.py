"""`python -m backchannel` is `backchannel`."""

from __future__ import annotations

from backchannel.cli.main import app

if __name__ == "__main__":
    app(prog_name="backchannel")
