"""A way of running the random conversations that only asks whether they find something."""

from __future__ import annotations

from hypothesis import Phase, settings

# `--hypothesis-profile unshrunk`: for scripts/mutants.py, which has no use for the smallest case.
settings.register_profile(
    "unshrunk", parent=settings.get_profile("small"), phases=[Phase.explicit, Phase.generate]
)
