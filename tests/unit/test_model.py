from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxburst import errors
from fluxburst.errors import ProviderError, Scope
from fluxburst.model import BootMaterial, Demand, Secret


@pytest.mark.parametrize("show", [str, repr, "{}".format, "{:>20}".format, "{0!r}".format])
def test_a_secret_shows_nothing_even_inside_of_other_things(show: object) -> None:
    secret = Secret(b"hunter2")
    boot = BootMaterial("", "/etc/flux/curve.cert", secret)
    assert callable(show)
    for value in (secret, boot, [secret], {"cert": secret}):
        if isinstance(value, Secret) or show in (str, repr):
            assert "hunter2" not in show(value)
    assert secret.reveal() == b"hunter2"


@pytest.mark.parametrize("copier", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_secret_is_neither_pickled_nor_copied(copier: object) -> None:
    assert callable(copier)
    with pytest.raises(TypeError, match="not pickled"):
        copier(Secret(b"hunter2"))


@given(st.integers(1, 20), st.integers(1, 60))
def test_the_nodes_of_a_job_hold_all_of_its_slots_and_none_is_in_vain(nodes: int, slots: int) -> None:
    per_node = Demand(nodes, slots, 1).slots_per_node()
    assert nodes * (per_node - 1) < slots <= nodes * per_node


def test_a_job_that_counts_no_nodes_has_no_slots_per_node() -> None:
    assert Demand(0, 4, 1).slots_per_node() == 0


@pytest.mark.parametrize(
    ("demand", "cores", "gpus", "slots"),
    [
        (Demand(0, 9, 2), 5, 0, 2),
        (Demand(0, 9, 2, 1), 5, 1, 1),
        (Demand(0, 9, 2, 1), 5, 8, 2),
        (Demand(0, 9, 6), 5, 0, 0),
    ],
)
def test_a_node_holds_as_many_slots_as_its_scarcest_resource(demand: Demand, cores: int, gpus: int, slots: int) -> None:
    assert demand.slots_on(cores, gpus) == slots


@pytest.mark.parametrize(
    ("kind", "scope"),
    [
        (errors.NoCapacity, Scope.OFFER),
        (errors.QuotaExceeded, Scope.REGION),
        (errors.AuthDenied, Scope.PROVIDER),
        (errors.InvalidOrder, Scope.POOL),
        (errors.RateLimited, Scope.PROVIDER),
        (errors.ProviderUnavailable, Scope.PROVIDER),
    ],
)
def test_a_providers_error_poisons_as_much_as_its_kind_says_unless_told_otherwise(
    kind: type[ProviderError], scope: Scope
) -> None:
    assert kind("no").scope is scope
    assert kind("no", scope=Scope.ZONE).scope is Scope.ZONE
    assert str(kind("no")) == "no"


def test_a_rate_limit_says_when_to_come_back() -> None:
    assert errors.RateLimited("slowly", retry_after_s=2.5).retry_after_s == 2.5
    assert errors.RateLimited("slowly").retry_after_s is None
