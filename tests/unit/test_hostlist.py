from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxburst import hostlist

HOSTS = st.lists(st.from_regex(r"[a-c]-(0|[1-9][0-9]?|0[0-9])", fullmatch=True), min_size=1, max_size=12, unique=True)
ALMOST = st.text(alphabet="ab01-,[] ", max_size=12)
"""Text that is now and then a host list."""


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("c", "c"),
        ("c[0-2]", "c0 c1 c2"),
        ("c[08-10]", "c08 c09 c10"),
        ("c[8-10]", "c8 c9 c10"),
        ("c[2,0-1]", "c2 c0 c1"),
        ("b,a", "b a"),
        ("lead0,c[0,3-4]-x,d", "lead0 c0-x c3-x c4-x d"),
        (" a , b ", "a b"),
    ],
)
def test_hosts_come_in_the_order_of_the_list(text: str, hosts: str) -> None:
    assert list(hostlist.expand(text)) == hosts.split()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "names no host"),
        (",", "names no host"),
        ("c[3-1]", "no host list"),
        ("c[", "no host list"),
        ("c]0", "no host list"),
        ("c[]", "no host list"),
        ("c[x]", "no host list"),
        ("c[0-4/2]", "no host list"),
        ("c[0-1]x[0-1]", "no host list"),
        ("a b", "no host list"),
        ("c,c", "names a host twice"),
        ("c[1,0-2]", "names a host twice"),
        ("c[0-999999999]", "too long"),
        ("c[0-600000,600001-1200000]", "too long"),
    ],
)
def test_what_is_no_host_list_is_a_value_error_that_shows_it(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what) as raised:
        hostlist.expand(text)
    assert repr(text) in str(raised.value)


@given(HOSTS)
def test_folding_keeps_every_host(hosts: list[str]) -> None:
    assert set(hostlist.expand(hostlist.fold(hosts))) == set(hosts)


def test_folding_is_short_and_nothing_folds_to_nothing() -> None:
    assert hostlist.fold(["c2", "c0", "c1"]) == "c[0-2]"
    assert hostlist.fold([]) == ""


@given(ALMOST)
def test_nothing_but_a_value_error_comes_out_of_any_text(text: str) -> None:
    for read in (hostlist.expand, hostlist.ids):
        try:
            told = f"{text!r} is read: {read(text)}"
        except ValueError as error:
            told = str(error)
        assert told.startswith(repr(text))


@pytest.mark.flux
@given(HOSTS)
def test_the_order_of_a_host_list_that_flux_wrote_is_kept(hosts: list[str]) -> None:
    from flux.hostlist import Hostlist

    assert list(hostlist.expand(Hostlist(hosts).encode())) == hosts


@pytest.mark.flux
@given(ALMOST)
def test_what_is_read_as_a_host_list_flux_reads_alike(text: str) -> None:
    from flux.hostlist import Hostlist

    try:
        hosts = hostlist.expand(text)
    except ValueError:
        return
    assert list(Hostlist(text)) == list(hosts)


@pytest.mark.parametrize(("text", "ids"), [("", set()), ("0-3,7", {0, 1, 2, 3, 7}), ("5", {5}), ("[0-1,3]", {0, 1, 3})])
def test_id_sets_are_read(text: str, ids: set[int]) -> None:
    assert hostlist.ids(text) == ids


@pytest.mark.parametrize("text", ["3-1", "x", "1,", "1;2", "-1", "0-9/3", "0-999999999"])
def test_what_is_no_id_set_is_a_value_error_that_shows_it(text: str) -> None:
    with pytest.raises(ValueError, match="id set") as raised:
        hostlist.ids(text)
    assert repr(text) in str(raised.value)


@pytest.mark.flux
@given(st.sets(st.integers(min_value=0, max_value=200)))
def test_id_sets_that_flux_wrote_are_read(ids: set[int]) -> None:
    from flux.idset import IDset

    written = IDset()
    for member in ids:
        written.set(member)
    assert hostlist.ids(str(written)) == ids
    assert hostlist.ids(f"[{written}]") == ids


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("c2-0-[0-1],c2-1-[0-2]", ["c2-0-0 c2-0-1", "c2-1-0 c2-1-1 c2-1-2"]),
        ("a-0", ["a-0"]),
        ("a-0,b-0,a-1", ["a-0 a-1", "b-0"]),
        ("c-[9-10]", ["c-9 c-10"]),
    ],
)
def test_blocks_are_hosts_whose_names_are_numbered_one_after_the_other(text: str, blocks: list[str]) -> None:
    assert [" ".join(block) for block in hostlist.blocks(hostlist.expand(text))] == blocks


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("c-[1,0]", "c-0: c-2 is missing before it"),
        ("c-[0,2]", "c-2: c-1 is missing before it"),
        ("c-[00-01]", "c-00: it has no block's name and number"),
        ("c[0-1]", "c0: it has no block's name"),
        ("c-x", "c-x: it has no block's name and number"),
    ],
)
def test_hosts_in_no_block_are_a_value_error_that_says_what_is_missing(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        hostlist.blocks(hostlist.expand(text))
