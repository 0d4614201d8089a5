"""What the pools answer to a demand, and what their tables may say."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from local_support import context

from fluxburst.errors import ConfigError
from fluxburst.model import Demand, Host, Offer, Refusal, Shrink
from fluxburst.provider import PoolSpec, ProviderContext
from fluxburst_local import make
from fluxburst_local.pools import misfit, offers

POOL = PoolSpec(name="p", hosts=tuple(Host(f"p-{index}") for index in range(4)), cores=8, gpus=2)


@pytest.mark.parametrize(
    ("demand", "reason"),
    [
        (Demand(nodes=4, slots=4, cores_per_slot=8), ""),
        (Demand(nodes=0, slots=32, cores_per_slot=1), ""),
        (Demand(nodes=0, slots=8, cores_per_slot=1, gpus_per_slot=1), ""),
        (Demand(nodes=5, slots=5, cores_per_slot=1), "needs 5 nodes; the pool has 4"),
        (Demand(nodes=1, slots=3, cores_per_slot=4), "needs 12 cores on one node; the pool's nodes have 8"),
        (
            Demand(nodes=1, slots=1, cores_per_slot=1, gpus_per_slot=4),
            "needs 4 GPUs on one node; the pool's nodes have 2",
        ),
        (Demand(nodes=0, slots=1, cores_per_slot=9), "needs 9 cores on one node; the pool's nodes have 8"),
        (Demand(nodes=0, slots=5, cores_per_slot=5), "needs 5 nodes; the pool has 4"),
        (Demand(nodes=0, slots=9, cores_per_slot=1, gpus_per_slot=1), "needs 5 nodes; the pool has 4"),
    ],
)
def test_a_demand_fits_by_cores_gpus_and_hosts(demand: Demand, reason: str) -> None:
    assert misfit(POOL, demand) == reason


def test_every_pool_answers_with_an_offer_or_a_reason() -> None:
    small = replace(POOL, name="small", cores=1, gpus=0)
    ours = ProviderContext("local", "c", {}, {"p": POOL, "small": small}, Path("/nowhere"))
    demand = Demand(nodes=1, slots=1, cores_per_slot=2)
    assert offers(ours, demand, instance_type="process", usd_per_node_hour=0.0, join_s=0.7) == [
        Offer("p", "local", "process", cores=8, gpus=2, usd_per_node_hour=0.0, join_s=0.7),
        Refusal("small", "local", "needs 2 cores on one node; the pool's nodes have 1"),
    ]


@pytest.mark.parametrize(("stated", "known", "offered"), [(None, None, None), (None, 0.0, 0.0), (0.25, 0.0, 0.25)])
def test_the_pool_s_own_price_goes_before_the_launcher_s(
    stated: float | None, known: float | None, offered: float | None
) -> None:
    ours = ProviderContext("local", "c", {}, {"p": replace(POOL, usd_per_node_hour=stated)}, Path("/nowhere"))
    (offer,) = offers(ours, Demand(1, 1, 1), instance_type="slurm", usd_per_node_hour=known)
    assert isinstance(offer, Offer)
    assert offer.usd_per_node_hour == offered


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"launcher": "pbs"}, "[provider.local] launcher: 'pbs' is unknown; write 'process', 'flux' or 'slurm'"),
        ({"retires": 1}, "[provider.local] retires: unknown key; remove it or mend its spelling"),
        ({"grace": "soon"}, "[provider.local] grace: 'soon' is no duration; write such as '90s', '5m' or '1.5h'"),
        ({"launcher": "flux"}, "[provider.local] uri: is required"),
        ({"launcher": "flux", "uri": "f123"}, "ask `flux uri` for it"),
        ({"launcher": "slurm", "shared_dir": "here"}, "[provider.local] shared_dir: 'here' is no absolute path"),
        ({"launcher": "slurm", "uri": "parent"}, "[provider.local] uri: unknown key"),
    ],
)
def test_a_wrong_table_is_named_with_its_key_and_the_fix(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(context(tmp_path, **table))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"launcher": "process"}, "partition"),
        ({"launcher": "flux", "uri": "parent"}, "partition"),
        ({"launcher": "slurm"}, "queue"),
    ],
)
def test_a_pool_s_options_are_its_launcher_s(tmp_path: Path, table: dict[str, Any], key: str) -> None:
    ours = context(tmp_path, **table)
    pools = {"p": replace(POOL, options={key: "x"})}
    with pytest.raises(ConfigError, match=rf"\[pool.p.options\] {key}: unknown key"):
        make(replace(ours, pools=pools))


@pytest.mark.parametrize(
    ("table", "shrink"),
    [({}, Shrink.ANY), ({"launcher": "flux", "uri": "parent"}, Shrink.ORDER), ({"launcher": "slurm"}, Shrink.ORDER)],
)
def test_building_a_provider_talks_to_no_one(tmp_path: Path, table: dict[str, Any], shrink: Shrink) -> None:
    state_dir = tmp_path / "state"
    assert make(context(state_dir, **table)).shrink is shrink
    assert not state_dir.exists()


def test_the_plugin_is_found_by_its_entry_point() -> None:
    (point,) = entry_points(group="fluxburst", name="local")
    assert list(point.load().fluxburst_providers()) == ["local"]
