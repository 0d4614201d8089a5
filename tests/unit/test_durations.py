from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxburst import durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *[("90s", 90.0), ("5m", 300.0), ("1.5h", 5400.0), ("2d", 172800.0), ("250ms", 0.25), ("7", 7.0), (".5", 0.5)],
        *[(" 1e3s ", 1000.0), (0, 0.0), (3, 3.0), (2.5, 2.5)],
    ],
)
def test_a_flux_standard_duration_is_read_as_seconds(text: str | float, seconds: float) -> None:
    assert durations.parse(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "5 m",
        "m",
        "-1",
        "+1",
        "1w",
        "five",
        "nan",
        "1e400",
        "5m5s",
        -1,
        float("nan"),
        float("inf"),
        True,
        None,
        [],
        {},
    ],
)
def test_anything_else_is_a_value_error_that_shows_it(value: object) -> None:
    with pytest.raises(ValueError, match="is no duration") as raised:
        durations.parse(value)
    assert repr(value) in str(raised.value)


@given(st.text() | st.floats() | st.booleans() | st.none() | st.lists(st.integers()))
def test_nothing_but_a_value_error_ever_comes_out(value: object) -> None:
    try:
        seconds = durations.parse(value)
    except ValueError:
        return
    assert 0 <= seconds < float("inf")


@pytest.mark.flux
@given(
    st.one_of(
        st.from_regex(r"[0-9]{1,4}(\.[0-9]{0,3})?(ms|s|m|h|d)?", fullmatch=True),
        st.from_regex(r"[0-9.]{0,3}(ms|s|m|h|d|w| )?", fullmatch=True),
    )
)
def test_flux_reads_the_same_durations(text: str) -> None:
    from flux.util import parse_fsd

    try:
        expected = parse_fsd(text)
    except ValueError:
        with pytest.raises(ValueError, match="is no duration"):
            durations.parse(text)
        return
    assert durations.parse(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0.45, "450ms"), (12.34, "12.3s"), (59.9, "59.9s"), (300, "5m"), (7800, "2h10m"), (3600, "1h"), (3570, "1h")],
        *[(259200, "3d"), (90000, "1d1h")],
    ],
)
def test_people_are_shown_a_short_text(seconds: float, text: str) -> None:
    assert durations.show(seconds) == text


@given(st.floats(min_value=0.001, max_value=1e7))
def test_the_short_text_is_near_the_truth(seconds: float) -> None:
    total = 0.0
    number = ""
    for character in durations.show(seconds).replace("ms", "u"):
        if character in "usmhd":
            total += float(number) * {"u": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[character]
            number = ""
        else:
            number += character
    assert number == ""
    assert abs(total - seconds) <= max(0.05 * seconds, 0.0006)
