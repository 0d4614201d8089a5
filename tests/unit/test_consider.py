"""What is weighed for one job, in examples, and held to what the planner says. Situations of the whole service are in
tests/controller/test_explain.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from fluxburst.consider import Consideration, HomeAnswer, consider, words
from fluxburst.model import Demand, Host, Offer, Refusal, VerdictKind
from fluxburst.moment import FleetNode, Moment, PoolState, Request, Resident, Rules
from fluxburst.plan import AT_HOME, Packer
from tests.unit.test_plan import NOW, ONE, TWO, Said, draft, offer, pool, request

INF = float("inf")


class Home:
    """A home of one node that is busy for so long; who takes it has it for his duration."""

    def __init__(self, busy_s: float) -> None:
        self._free_at = NOW + busy_s

    def start_at(self, queue: str, demand: Demand) -> float:
        return self._free_at

    def take(self, queue: str, demand: Demand, start_at: float) -> None:
        self._free_at = start_at + demand.duration_s


def moment(
    requests: Sequence[Request],
    pools: Sequence[PoolState],
    offers: Sequence[Offer | Refusal] | None = None,
    *,
    limits: str = "",
    **more: Any,
) -> Moment:
    answers = [offer(one.name) for one in pools] if offers is None else offers
    return Moment(
        NOW,
        {one.job_id: one for one in requests},
        {one.name: one for one in pools},
        Said({one.provider: answers for one in pools}),
        draft(limits, pools),
        **more,
    )


def weigh(
    job: Request, pools: Sequence[PoolState], *args: Any, before: Sequence[Request] = (), **more: Any
) -> Consideration:
    return consider(moment([*before, job], pools, *args, **more), job)


def test_every_pool_and_every_offer_has_its_own_answer() -> None:
    pools = [pool(), pool("d4", cores=2), pool("e8", closed="paused", closed_fix="resume")]
    offers = [offer(price=2.0), offer(price=0.5, zone="b", nodes_left=1), offer("e8")]
    first, second, third = weigh(request(1, TWO, ("c2", "d4", "e8"), max_usd=2.0), pools, offers).pools
    assert [(one.quote.offer.zone, one.place is None, one.left) for one in first.offers] == [
        ("", True, None),
        ("b", True, 1),
    ]
    dear, few = (one.obstacle for one in first.offers)
    assert dear is not None
    assert dear.reason == "would cost $4.07, more than burst.max_usd = 2"
    assert few is not None
    assert words(few, NOW) == "the provider has too few of c2-large left (1 left, 2 needed), for another 30s"
    assert second.obstacle is not None
    assert second.obstacle.reason == "needs 4 cores on a node, the pool's nodes have 2 cores"
    assert third.obstacle is not None
    assert (third.obstacle.reason, third.obstacle.fix) == ("paused", "resume")
    (elsewhere,) = third.offers
    assert elsewhere.place is not None, "what it would say is told although the pool is closed"


def test_offers_of_the_wrong_kind_are_no_offers() -> None:
    told = weigh(request(1, Demand(1, 1, 1, spot=True)), [pool()], [offer(spot=False)])
    assert told.decided == "c2: it offers no spot nodes"
    assert told.fix == "c2: drop burst.spot, or add a pool of spot nodes"


def test_what_others_have_is_not_there_twice_and_those_after_it_do_not_matter() -> None:
    four, five = (Demand(count, count, 4, exclusive=True, duration_s=60.0) for count in (4, 5))
    later = request(9, four)
    alone = consider(moment([later, request(10, five), request(11, four)], [pool()]), later)
    assert (alone.place is not None, alone.decided) == (True, "c2 in 1m for $0.07")
    behind = weigh(later, [pool()], before=[request(1, TWO)])
    assert behind.decided.startswith("c2: too few of its 4 hosts are free (2 left, 4 needed)")


def test_a_job_that_has_its_hosts_keeps_them() -> None:
    coming = FleetNode(Host("c2-0"), 4, 0, whole=True, up=False, at=NOW + 40)
    booked = request(1, ONE, booked=("c2", (Host("c2-0"),)))
    told = weigh(booked, [pool(fleet=(coming,), free=())], home=Home(10.0))
    assert (told.decided, told.home) == ("c2-0 expected to be up in 40s, and kept for it", None)


HOMES = [
    (30.0, Rules(), "home in 30s, c2 in 1m for $0.51: home is sooner", "nothing; it starts there"),
    (
        90.0,
        Rules(min_wait_s=120.0),
        "home in 2m, c2 in 1m for $0.51, [policy] min_wait = 2m: too short a wait to burst",
        "nothing, or a lower [policy] min_wait",
    ),
    (
        1860.0,
        Rules(max_usd_per_hour_saved=0.5),
        "home in 31m, c2 in 1m for $0.51: $0.51 for 30m saved is $1.02 an hour saved, "
        "[policy] max_usd_per_hour_saved = 0.5",
        "nothing, or [policy] max_usd_per_hour_saved = 1.02",
    ),
    (
        1860.0,
        Rules(max_usd_per_hour_saved=2.0),
        "home in 31m, c2 in 1m for $0.51: $0.51 for 30m saved is $1.02 an hour saved, "
        "[policy] max_usd_per_hour_saved = 2",
        "",
    ),
    (1860.0, Rules(), "home in 31m, c2 in 1m for $0.51: it bursts", ""),
    (INF, Rules(), "c2 in 1m for $0.51; home is not expected ever to start it", ""),
]


@pytest.mark.parametrize(("busy_s", "rules", "decided", "fix"), HOMES, ids=[decided for *_, decided, _ in HOMES])
def test_home_is_weighed_against_the_best_offer(busy_s: float, rules: Rules, decided: str, fix: str) -> None:
    told = weigh(request(1, Demand(1, 1, 1, duration_s=3600.0)), [pool()], home=Home(busy_s), rules=rules)
    assert (told.decided, told.fix) == (decided, fix)
    assert told.home == HomeAnswer(None if busy_s == INF else NOW + busy_s)


def test_home_goes_to_those_before_it_first_and_the_schedulers_word_before_ours() -> None:
    resident = Resident((-16, 1), Demand(1, 1, 1, duration_s=500.0))
    last = Resident((-16, 9), Demand(1, 1, 1, duration_s=5000.0))
    job = request(2, Demand(1, 1, 1, duration_s=3600.0))
    told = weigh(job, [pool()], home=Home(10.0), residents=[resident, last])
    assert told.home == HomeAnswer(NOW + 510)
    told = weigh(request(2, ONE, home_at=NOW + 20), [pool()], home=Home(10.0))
    assert told.home == HomeAnswer(NOW + 20, told=True)


DEMANDS = [ONE, TWO, Demand(4, 4, 1), Demand(0, 9, 1, duration_s=600.0), Demand(2, 2, 4, duration_s=7200.0, spot=True)]
POOLS = [
    [pool()],
    [pool(up=2), pool("d4", closed="cools down", closed_until_at=NOW + 60)],
    [pool(free=()), pool("d4")],
]
OFFERS: list[list[Offer | Refusal]] = [
    [offer(), offer("d4", price=0.2)],
    [offer(price=None), offer("d4", nodes_left=1), offer("d4", price=3.0, spot=True)],
    [Refusal("c2", "gke", "quota is 0"), Refusal("d4", "gke", "sold out", NOW + 30)],
]
LIMITS = ["", "[limits]\nnodes = 3", "[limits]\nusd_per_day = 1.5"]
HOME = [None, 30.0, 7200.0, INF]


@pytest.mark.parametrize("demand", DEMANDS, ids=str)
def test_a_job_alone_is_told_what_the_planner_says(demand: Demand) -> None:
    """A place is found exactly where the planner has one, at home or not, and every reason of the planner is told."""
    kinds = set()
    for pools, offers, limits, busy_s, max_usd in itertools.product(POOLS, OFFERS, LIMITS, HOME, (None, 1.0)):
        job = request(1, demand, [one.name for one in pools], max_usd=max_usd)
        one, same = (
            moment([job], pools, offers, limits=limits, home=None if busy_s is None else Home(busy_s)) for _ in range(2)
        )
        verdict, told = Packer().plan(one).verdicts[job.job_id], consider(same, job)
        kinds.add(verdict.kind)
        if verdict.reason == AT_HOME:
            assert told.decided.startswith("home in")
        elif verdict.hosts:
            assert told.place is not None
            assert told.place.pool == verdict.pool
            assert (told.place.buys > 0) == (verdict.kind is VerdictKind.BURST)
        else:
            assert told.place is None
            for name, reason in verdict.pool_reasons:
                assert f"{name}: {reason}" in told.decided
    assert len(kinds) >= 3
