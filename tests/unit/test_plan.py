"""What a plan says, in examples. What holds for every plan is in test_planner_properties.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from fluxburst import config
from fluxburst.budget import Draft, Ledger
from fluxburst.fit import ASKING
from fluxburst.model import Demand, Host, JobId, Offer, Refusal, VerdictKind
from fluxburst.moment import FleetNode, Moment, Plan, PoolState, Quote, Request, Rules, Shape
from fluxburst.offers import asked_as
from fluxburst.plan import Packer, describe

NOW = 1000.0
JOIN_S = 60.0


def pool(name: str = "c2", hosts: int = 4, up: int = 0, **changes: Any) -> PoolState:
    declared = {Host(f"{name}-{index}"): index for index in range(hosts)}
    names = list(declared)
    known: dict[str, Any] = {
        "name": name,
        "provider": "gke",
        "cores": 4,
        "gpus": 0,
        "properties": frozenset({name}),
        "declared": declared,
        "fleet": tuple(FleetNode(host, 4, 0, whole=True, up=True, usd_per_node_hour=0.5) for host in names[:up]),
        "free": tuple(names[up:]),
    }
    return PoolState(**(known | changes))


def offer(pool: str = "c2", price: float | None = 0.5, **changes: Any) -> Offer:
    return Offer(pool, "gke", f"{pool}-large", 4, usd_per_node_hour=price, **changes)


class Said:
    """A market in which every provider gave the same answers to every demand."""

    def __init__(self, answers: Mapping[str, Sequence[Offer | Refusal]]) -> None:
        self._quotes = {
            provider: [
                Quote(one, one.join_s or JOIN_S, one.join_s or JOIN_S) if isinstance(one, Offer) else one
                for one in all_
            ]
            for provider, all_ in answers.items()
        }

    def quotes(self, provider: str, demand: Demand, *, old: bool = False) -> Sequence[Quote | Refusal] | None:
        return self._quotes.get(provider)


def draft(limits: str, pools: Sequence[PoolState]) -> Draft:
    """What one plan may spend under these ``[limits]``."""
    tables = "".join(
        f'[pool.{one.name}]\nprovider = "{one.provider}"\nhosts = "{one.name}-[0-{len(one.declared) - 1}]"\ncores = 4\n'
        for one in pools
    )
    text = f'cluster = "test"\n[lead]\nconnect = "tcp://127.0.0.1:8050"\n{limits}\n{tables}'
    live = {one.name: len(one.fleet) for one in pools}
    return Ledger(config.parse(text), (), NOW).draft(NOW, live)


def decide(
    requests: Sequence[Request],
    pools: Sequence[PoolState],
    offers: Sequence[Offer | Refusal] | None = None,
    *,
    limits: str = "",
    **moment: Any,
) -> Plan:
    """One plan of a planner that knows nothing of the past; without ``offers`` nobody has been asked yet."""
    answers = {} if offers is None else {one.provider: offers for one in pools}
    return Packer().plan(
        Moment(
            NOW,
            {request.job_id: request for request in requests},
            {one.name: one for one in pools},
            Said(answers),
            draft(limits, pools),
            **moment,
        )
    )


def request(number: int, demand: Demand, pools: Sequence[str] = ("c2",), **changes: Any) -> Request:
    shape = Shape(demand, tuple(pools), changes.pop("max_usd", None))
    return Request(JobId(number), shape, (-16, number), **changes)


def plan(
    demands: Sequence[Demand],
    pools: Sequence[PoolState],
    offers: Sequence[Offer | Refusal] | None = None,
    *,
    max_usd: float | None = None,
    not_before_at: float = 0.0,
    **keywords: Any,
) -> Plan:
    """One plan in which every demand is a job 1, 2, … and every provider gave the same answers to all of them."""
    names = [one.name for one in pools]
    requests = [
        request(number, demand, names, max_usd=max_usd, not_before_at=not_before_at)
        for number, demand in enumerate(demands, 1)
    ]
    return decide(requests, pools, [offer(name) for name in names] if offers is None else offers, **keywords)


ONE = Demand(1, 1, 1)
TWO = Demand(2, 2, 4, exclusive=True, duration_s=3600.0)


def test_a_gang_is_bought_whole_at_the_offers_price() -> None:
    made = plan([TWO], [pool()])
    verdict = made.verdicts[JobId(1)]
    assert (verdict.kind, verdict.pool, verdict.hosts) == (VerdictKind.BURST, "c2", ("c2-0", "c2-1"))
    assert verdict.reason == "buying 2 of c2-large at $0.5 an hour each"
    assert verdict.usd_per_hour == 1.0
    (purchase,) = made.purchases
    assert (purchase.hosts, purchase.job_ids) == (verdict.hosts, (1,))
    assert set(made.booked) == {"c2-0", "c2-1"}


def test_small_jobs_share_a_node_before_another_one_is_bought_and_share_one_order() -> None:
    made = plan([ONE] * 5, [pool()])
    assert [verdict.kind for verdict in made.verdicts.values()] == ["burst", "coming", "coming", "coming", "burst"]
    (purchase,) = made.purchases
    assert (purchase.hosts, purchase.job_ids) == (("c2-0", "c2-1"), (1, 5))


def test_nodes_that_are_up_serve_before_those_on_their_way() -> None:
    fleet = (FleetNode(Host("c2-0"), 4, 0, whole=True, up=False), FleetNode(Host("c2-1"), 4, 0, whole=True, up=True))
    made = plan([ONE, TWO], [pool(fleet=fleet, free=(Host("c2-2"),))])
    assert made.verdicts[JobId(1)].hosts == ("c2-1",)
    assert made.verdicts[JobId(1)].reason == "its nodes are up"
    made = plan([Demand(2, 2, 1)], [pool(fleet=fleet)])
    assert made.verdicts[JobId(1)].reason == "nodes on their way serve it"


def test_what_is_missing_is_bought_beside_what_is_there() -> None:
    made = plan([TWO], [pool(up=1)])
    verdict = made.verdicts[JobId(1)]
    assert verdict.hosts == ("c2-0", "c2-1")
    assert verdict.reason.startswith("buying 1 of c2-large")
    assert made.purchases[0].hosts == ("c2-1",)


def test_a_job_that_counts_slots_spreads_over_as_many_nodes_as_it_takes() -> None:
    verdict = plan([Demand(0, 9, 1)], [pool()]).verdicts[JobId(1)]
    assert verdict.hosts == ("c2-0", "c2-1", "c2-2")


REFUSALS = [
    (Demand(1, 1, 8), pool(), "needs 8 cores on a node, the pool's nodes have 4 cores"),
    (Demand(1, 2, 1, 1), pool(), "needs 2 cores and 2 GPUs on a node, the pool's nodes have 4 cores and 0 GPUs"),
    (Demand(5, 5, 1), pool(), "needs 5 nodes, the pool declares 4"),
    (Demand(0, 17, 1), pool(), "needs 5 nodes, the pool declares 4"),
    (
        Demand(1, 1, 1, constraint='{"properties":["nosuch"]}'),
        pool(),
        'no host satisfies the job\'s constraint {"properties":["nosuch"]}',
    ),
]


@pytest.mark.parametrize(("demand", "where", "reason"), REFUSALS, ids=[reason for *_, reason in REFUSALS])
def test_what_a_pool_can_never_do_is_refused_with_the_numbers(demand: Demand, where: PoolState, reason: str) -> None:
    made = plan([demand], [where])
    verdict = made.verdicts[JobId(1)]
    assert verdict.kind is VerdictKind.REFUSED
    assert verdict.pool_reasons == (("c2", reason),)
    assert verdict.reason == f"c2: {reason}"
    assert made.purchases == ()


def test_a_pool_that_can_never_do_it_is_not_asked_about() -> None:
    made = decide([request(1, Demand(9, 9, 1))], [pool()])
    assert made.asks == frozenset()
    assert made.verdicts[JobId(1)].kind is VerdictKind.REFUSED


MONEY = [
    (None, 3600.0, "has no known price, and the job sets burst.max_usd"),
    (0.5, 0.0, "the job has no time limit, and the job sets burst.max_usd; submit it with -t"),
    (0.5, 7200.0, "would cost $2.02, more than burst.max_usd = 1.5"),
]


@pytest.mark.parametrize(("price", "duration", "reason"), MONEY, ids=[reason for *_, reason in MONEY])
def test_a_price_above_the_jobs_limit_or_unknown_is_refused(price: float | None, duration: float, reason: str) -> None:
    demand = Demand(2, 2, 1, exclusive=True, duration_s=duration)
    verdict = plan([demand], [pool()], [offer(price=price)], max_usd=1.5).verdicts[JobId(1)]
    assert verdict.kind is VerdictKind.REFUSED
    assert verdict.pool_reasons == (("c2", reason),)


def test_a_price_at_the_jobs_limit_is_paid_boot_included_and_time_on_nodes_that_are_there_counts() -> None:
    whole = 2 * 0.5 * (JOIN_S + 3600.0) / 3600
    assert plan([TWO], [pool()], max_usd=whole).verdicts[JobId(1)].kind is VerdictKind.BURST
    assert plan([TWO], [pool()], max_usd=whole - 0.001).verdicts[JobId(1)].kind is VerdictKind.REFUSED
    assert plan([TWO], [pool(up=1)], max_usd=0.6).verdicts[JobId(1)].kind is VerdictKind.REFUSED


HALF = pool(up=1, free=(Host("c2-3"),), fleet=(FleetNode(Host("c2-0"), 0, 0, whole=False, up=True),))
CAPS = "[limits]\n{}"
JUST_NOW = [
    (HALF, "", {}, "too few of its 4 hosts are free"),
    (pool(up=1), CAPS.format("nodes = 2"), {}, None),
    (HALF, CAPS.format("nodes = 2"), {"free": ("c2-2", "c2-3")}, "[limits] nodes = 2 leaves too few nodes"),
    (pool(), "", {"nodes_left": 1}, "the provider has too few of c2-large left"),
    (pool(), CAPS.format("usd_per_day = 0.9"), {}, "would reserve $1.00, more than [limits] usd_per_day = 0.9"),
]


@pytest.mark.parametrize(("where", "limits", "left", "reason"), JUST_NOW)
def test_what_time_may_mend_waits_and_says_what_for(
    where: PoolState, limits: str, left: dict[str, Any], reason: str | None
) -> None:
    if "free" in left:
        where, left = dataclasses.replace(where, **left), {}
    verdict = plan([TWO], [where], [offer(**left)], limits=limits).verdicts[JobId(1)]
    if reason is None:
        assert verdict.kind is VerdictKind.BURST, "one is there, one is bought"
        return
    assert verdict.kind is (VerdictKind.REFUSED if "more than" in reason else VerdictKind.WAIT)
    assert verdict.reason == f"c2: {reason}"
    assert verdict.pool_reasons == (("c2", reason),)


def test_a_pool_that_cools_down_is_waited_for_until_then() -> None:
    closed = pool(closed="left alone after: no capacity", closed_until_at=NOW + 120)
    made = plan([ONE], [closed])
    verdict = made.verdicts[JobId(1)]
    assert (verdict.kind, verdict.until_at) == (VerdictKind.WAIT, NOW + 120)
    assert describe(verdict, NOW) == "wait: c2: left alone after: no capacity, for another 2m"
    assert made.asks == frozenset()


def test_a_closed_pool_still_serves_with_the_nodes_that_it_has() -> None:
    verdict = plan([ONE], [pool(up=1, closed="paused")]).verdicts[JobId(1)]
    assert verdict.kind is VerdictKind.COMING


def test_the_earliest_of_several_ends_is_told() -> None:
    pools = [pool(closed="cools down", closed_until_at=NOW + 90), pool("d4", provider="eks")]
    verdict = plan([ONE], pools, [Refusal("d4", "eks", "stockout", retry_at=NOW + 30)]).verdicts[JobId(1)]
    assert verdict.until_at == NOW + 30
    assert verdict.pool_reasons == (("c2", "cools down"), ("d4", "stockout"))
    assert set(verdict.reason.split("; ")) == {"c2: cools down", "d4: stockout"}


def test_a_providers_refusal_for_good_is_the_jobs_refusal() -> None:
    verdict = plan([ONE], [pool()], [Refusal("c2", "gke", "quota C2_CPUS is 0")]).verdicts[JobId(1)]
    assert (verdict.kind, verdict.reason) == (VerdictKind.REFUSED, "c2: quota C2_CPUS is 0")


def test_a_provider_that_says_nothing_of_a_pool_has_refused_it() -> None:
    verdict = plan([ONE], [pool()], []).verdicts[JobId(1)]
    assert verdict.pool_reasons == (("c2", "provider gke offers nothing for it"),)


@pytest.mark.parametrize(("spot", "kind"), [(True, "spot"), (False, "on-demand")])
def test_only_the_kind_of_node_that_the_job_wants_is_bought(spot: bool, kind: str) -> None:
    demand = Demand(1, 1, 1, spot=spot)
    verdict = plan([demand], [pool()], [offer(spot=not spot)]).verdicts[JobId(1)]
    assert verdict.pool_reasons == (("c2", f"it offers no {kind} nodes"),)
    both = [offer(price=0.1, spot=not spot), offer(price=0.9, spot=spot)]
    assert plan([demand], [pool()], both).purchases[0].offer == both[1]


def test_an_unanswered_question_is_asked_once_and_waited_for() -> None:
    requests = [request(number, ONE, ("c2", "d4")) for number in (1, 2)]
    made = decide(requests, [pool(), pool("d4", provider="eks")])
    assert made.asks == {("gke", asked_as(ONE)), ("eks", asked_as(ONE))}
    assert {verdict.reason for verdict in made.verdicts.values()} == {ASKING}


def test_a_job_that_wants_to_wait_first_takes_what_is_there_but_buys_nothing() -> None:
    verdict = plan([ONE], [pool()], not_before_at=NOW + 60).verdicts[JobId(1)]
    assert (verdict.kind, verdict.until_at) == (VerdictKind.WAIT, NOW + 60)
    assert verdict.reason == "burst.wait has not passed yet"
    assert plan([ONE], [pool(up=1)], not_before_at=NOW + 60).verdicts[JobId(1)].kind is VerdictKind.COMING
    assert plan([ONE], [pool()], not_before_at=NOW).verdicts[JobId(1)].kind is VerdictKind.BURST


def test_the_next_best_offer_is_taken_when_the_best_one_has_too_few_left() -> None:
    offers = [offer(price=0.1, nodes_left=1), offer("d4", price=0.2)]
    verdict = plan([TWO], [pool(), pool("d4")], offers).verdicts[JobId(1)]
    assert (verdict.kind, verdict.pool) == (VerdictKind.BURST, "d4")


def test_an_offers_last_nodes_are_sold_once() -> None:
    made = plan([TWO, TWO], [pool()], [offer(nodes_left=3)])
    assert [verdict.kind for verdict in made.verdicts.values()] == ["burst", "wait"]
    assert made.verdicts[JobId(2)].reason == "c2: the provider has too few of c2-large left"


def test_the_sites_limit_holds_for_all_jobs_together() -> None:
    made = plan([TWO, TWO], [pool()], limits="[limits]\nnodes = 3")
    assert [verdict.kind for verdict in made.verdicts.values()] == ["burst", "wait"]
    assert made.verdicts[JobId(2)].reason == "c2: [limits] nodes = 3 leaves too few nodes"


def test_each_gang_is_an_order_of_its_own() -> None:
    made = plan([TWO, TWO], [pool()])
    assert [(purchase.hosts, purchase.job_ids) for purchase in made.purchases] == [
        (("c2-0", "c2-1"), (1,)),
        (("c2-2", "c2-3"), (2,)),
    ]


def test_an_exclusive_job_shares_its_node_with_none_before_it_and_none_after() -> None:
    alone = Demand(1, 1, 1, exclusive=True)
    verdicts = plan([ONE, alone, ONE, ONE, ONE, ONE], [pool()]).verdicts
    hosts = [verdicts[JobId(number)].hosts[0] for number in range(1, 7)]
    assert hosts.count(hosts[1]) == 1
    assert len(set(hosts)) == 3


def test_a_job_is_not_refused_for_the_limit_of_another_one_like_it() -> None:
    requests = [request(number, TWO, max_usd=max_usd) for number, max_usd in enumerate((0.1, 5.0, None))]
    made = decide(requests, [pool()], [offer()])
    assert [verdict.kind for verdict in made.verdicts.values()] == ["refused", "burst", "burst"]


def test_a_job_with_gpus_takes_them_from_the_next_one() -> None:
    demand = Demand(1, 1, 1, 1)
    made = plan([demand] * 3, [pool(gpus=2)])
    assert [verdict.hosts for verdict in made.verdicts.values()] == [("c2-0",), ("c2-0",), ("c2-1",)]


def test_constraints_choose_among_a_pools_hosts() -> None:
    demand = Demand(1, 1, 1, constraint='{"hostlist":["c2-[2-3]"]}')
    verdict = plan([demand], [pool(up=1)]).verdicts[JobId(1)]
    assert (verdict.kind, verdict.hosts) == (VerdictKind.BURST, ("c2-2",))


def test_warm_nodes_are_bought_for_no_job_and_jobs_may_use_them() -> None:
    made = decide((), [pool(up=1)], [offer()], holds={"c2": 3})
    assert [(purchase.hosts, purchase.job_ids) for purchase in made.purchases] == [(("c2-1", "c2-2"), ())]
    assert made.unmet == {}


def test_warm_nodes_that_cannot_be_had_have_a_reason() -> None:
    made = decide((), [pool()], holds={"c2": 1})
    assert made.unmet == {"c2": ASKING}
    assert len(made.asks) == 1
    made = decide((), [pool(closed="paused")], holds={"c2": 1})
    assert made.unmet == {"c2": "paused"}


SHORT_PAID = FleetNode(Host("c2-0"), 4, 0, whole=True, up=True, paid_until_at=NOW + 60, usd_per_node_hour=0.5)


@pytest.mark.parametrize(
    ("demand", "not_before_at", "reason"),
    [
        (Demand(1, 1, 1, duration_s=3600.0), 0.0, "would reserve"),
        (Demand(1, 1, 1, duration_s=3600.0), NOW + 10, "burst.wait has not passed yet"),
        (TWO, 0.0, "would reserve"),
        (Demand(0, 6, 1, duration_s=3600.0), 0.0, "would reserve"),
    ],
    ids=["one", "early", "gang", "slots"],
)
def test_a_job_that_may_not_stay_on_a_node_for_what_that_costs_goes_without_it(
    demand: Demand, not_before_at: float, reason: str
) -> None:
    where = pool(fleet=(SHORT_PAID,), free=(Host("c2-1"),))
    made = plan([demand], [where], limits="[limits]\nusd_per_day = 0.1", not_before_at=not_before_at)
    verdict = made.verdicts[JobId(1)]
    assert reason in verdict.reason
    assert (verdict.hosts, made.purchases, made.extensions) == ((), (), ())


def test_a_gang_that_could_have_its_rest_but_not_pay_for_all_takes_neither() -> None:
    """There is enough for one new node, or to stay on the one that is there, but not for both."""
    where = pool(fleet=(SHORT_PAID,), free=(Host("c2-1"),))
    made = plan([TWO], [where], limits="[limits]\nusd_per_day = 0.75")
    verdict = made.verdicts[JobId(1)]
    assert verdict.kind in (VerdictKind.WAIT, VerdictKind.REFUSED)
    assert (verdict.hosts, made.purchases, made.extensions) == ((), (), ())


def test_a_gang_too_dear_on_the_first_nodes_has_the_cheaper_ones_that_are_there() -> None:
    dear = [FleetNode(Host(f"c2-{n}"), 4, 0, whole=True, up=True, usd_per_node_hour=5.0) for n in (0, 1)]
    cheap = [FleetNode(Host(f"c2-{n}"), 3, 0, whole=False, up=True, usd_per_node_hour=0.1) for n in (2, 3)]
    gang = Demand(2, 2, 1, duration_s=3600.0)
    made = plan([gang], [pool(fleet=(*dear, *cheap), free=())], max_usd=1.0)
    assert made.verdicts[JobId(1)].hosts == ("c2-2", "c2-3")
    assert made.purchases == ()


def test_slots_take_what_is_left_of_several_nodes_before_one_is_bought_and_keep_it() -> None:
    left = tuple(FleetNode(Host(f"c2-{n}"), 2, 0, whole=False, up=True) for n in (0, 1))
    where, demand = pool(fleet=left, free=(Host("c2-2"),)), Demand(0, 4, 1, duration_s=3600.0)
    made = plan([demand], [where])
    verdict = made.verdicts[JobId(1)]
    assert (verdict.kind, verdict.hosts, made.purchases) == (VerdictKind.COMING, ("c2-0", "c2-1"), ())
    again = decide([request(1, demand, booked=("c2", verdict.hosts)), request(2, ONE)], [where], [offer()])
    assert again.verdicts[JobId(1)] == verdict
    assert again.verdicts[JobId(2)].kind is VerdictKind.BURST


def test_a_job_keeps_the_hosts_that_it_was_promised_before_it_looks_at_others() -> None:
    coming = tuple(FleetNode(Host(f"c2-{index}"), 4, 0, whole=True, up=False) for index in range(4))
    booked = request(2, TWO, booked=("c2", (Host("c2-2"), Host("c2-3"))))
    assert decide([booked], [pool(fleet=coming)]).verdicts[JobId(2)].hosts == ("c2-2", "c2-3")


def test_a_job_that_lost_a_promised_host_takes_another() -> None:
    coming = tuple(FleetNode(Host(f"c2-{index}"), 4, 0, whole=True, up=False) for index in (0, 3))
    booked = request(2, TWO, booked=("c2", (Host("c2-2"), Host("c2-3"))))
    assert decide([booked], [pool(fleet=coming)]).verdicts[JobId(2)].hosts == ("c2-0", "c2-3")


def test_a_verdict_is_told_in_one_line() -> None:
    verdict = plan([TWO], [pool()]).verdicts[JobId(1)]
    assert describe(verdict, NOW) == "burst: buying 2 of c2-large at $0.5 an hour each (pool c2), $1 an hour in all"
    assert describe(plan([TWO], [pool()], [offer(price=None)]).verdicts[JobId(1)], NOW) == (
        "burst: buying 2 of c2-large (pool c2)"
    )


def test_for_a_gang_that_waits_as_much_is_kept_as_it_lacks_when_those_before_it_have_theirs() -> None:
    """It is judged before anybody gets anything, too, as dollars are capped: then it lacks one node less."""
    busy = tuple(FleetNode(Host(f"c2-{n}"), 0, 0, whole=False, up=True, end_at=NOW + 900, paid_until_at=NOW + 1200,
                           usd_per_node_hour=0.5) for n in (0, 1))  # fmt: skip
    where = pool(hosts=3, fleet=busy, free=(Host("c2-2"),))
    one = Demand(1, 1, 4, exclusive=True, duration_s=3600.0)
    made = plan([one, TWO], [where], limits="[limits]\nusd_per_day = 100", rules=Rules(capped=True))
    assert made.verdicts[JobId(1)].hosts == ("c2-2",)
    assert made.verdicts[JobId(2)].hosts == ("c2-0", "c2-1")
