from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxburst import jobid
from fluxburst.errors import RequestError

IDS = st.integers(min_value=0, max_value=(1 << 64) - 1)


@given(IDS)
def test_every_form_of_an_id_is_read_back(number: int) -> None:
    text = jobid.f58(number)
    digits = f"{number:016x}"
    dotted = ".".join(digits[index : index + 4] for index in range(0, 16, 4))
    assert {jobid.parse(form) for form in (text, "f" + text[1:], str(number), hex(number), dotted)} == {number}


@pytest.mark.parametrize("text", ["", "f", "ƒ", "f0", "ƒé", "-5", "1e", "x.y", "ƒ" + "z" * 12, str(1 << 64), "job"])
def test_a_text_that_is_no_id_is_refused_by_name(text: str) -> None:
    with pytest.raises(RequestError, match="is no job id") as raised:
        jobid.parse(text)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize("number", [-1, -(1 << 70), 1 << 64])
def test_a_number_that_is_no_id_has_no_f58_form(number: int) -> None:
    with pytest.raises(RequestError, match="is no job id"):
        jobid.f58(number)


@pytest.mark.flux
@given(IDS)
def test_flux_writes_the_same_f58(number: int) -> None:
    from flux.job import JobID

    assert jobid.f58(number) == JobID(number).f58
