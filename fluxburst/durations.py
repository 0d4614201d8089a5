"""Flux Standard Durations (RFC 23): a number with an optional unit ``ms``, ``s``, ``m``, ``h`` or ``d``."""

from __future__ import annotations

import re

_FORM = re.compile(r"(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)(ms|s|m|h|d)?")
_UNITS_S = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse(text: object) -> float:
    """Seconds of a duration: ``"5m"`` gives 300.0, a number is seconds already.

    Raises:
        ValueError: neither a number at or above 0 nor such a text.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        seconds = float(text)
    else:
        match = _FORM.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"{text!r} is no duration; write such as '90s', '5m' or '1.5h'")
        seconds = float(match[1]) * _UNITS_S[match[2]]
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{text!r} is no duration: it must be 0 or more, and finite")
    return seconds


def show(seconds: float) -> str:
    """A short text for people, such as ``450ms``, ``12.3s``, ``5m``, ``2h10m`` or ``3d``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.3g}s"
    minutes, hours, days = round(seconds / 60), round(seconds / 60) // 60, round(seconds / 3600) // 24
    if hours < 1:
        return f"{minutes}m"
    if days < 1:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    return f"{days}d{round(seconds / 3600) % 24}h" if round(seconds / 3600) % 24 else f"{days}d"
