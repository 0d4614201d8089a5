"""Hypothesis for the unit tests: the same examples in every run; ``--hypothesis-profile=search`` looks further."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unit", deadline=None, max_examples=120, database=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=3000, database=None)
settings.load_profile("unit")
