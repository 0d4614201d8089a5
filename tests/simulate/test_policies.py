"""Each policy alone, on moments made by hand: one pool of nodes of four cores at a dollar, unless said otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from fluxburst import config as configuration
from fluxburst.model import Account, Demand, Host, JobId, Offer, Refusal, Verdict, VerdictKind
from fluxburst.moment import Cap, FleetNode, Moment, Plan, Planner, PoolState, Quote, Request, Rules, Shape
from fluxburst.simulate import policies
from fluxburst.simulate.policies import POLICIES, LeastWaste, OneBurstAJob, PowerSave, Predecessor

RIVALS = (OneBurstAJob, PowerSave, LeastWaste, Predecessor)


class Stall:
    """A market with one quote a pool. ``quiet`` providers have to be asked first."""

    def __init__(self, *quotes: Quote | Refusal, quiet: bool = False) -> None:
        self._quotes = quotes
        self._quiet = quiet

    def quotes(self, provider: str, demand: Demand, *, old: bool = False) -> Sequence[Quote | Refusal] | None:
        return None if self._quiet else self._quotes


class Purse:
    """A draft with so many nodes and dollars in it; the account does not matter."""

    def __init__(self, nodes: int = 1000, usd: float = 1e9) -> None:
        self.nodes, self.usd = nodes, usd
        self._marks: list[tuple[int, float]] = []

    def allowed(self, account: Account, pool: str, usd_per_node: float | None) -> tuple[int, Cap | None]:
        return min(self.nodes, int(self.usd // usd_per_node) if usd_per_node else self.nodes), None

    def take(self, account: Account, pool: str, nodes: int, usd_per_node: float | None) -> None:
        allowed, _ = self.allowed(account, pool, usd_per_node)
        assert nodes <= allowed
        self.nodes -= nodes
        self.usd -= nodes * (usd_per_node or 0.0)

    def extend(self, account: Account, pool: str, usd: float | None) -> Cap | None:
        if (usd or 0.0) > self.usd:
            return Cap("[limits] usd_per_day", "usd", 0.0, 0.0)
        self.usd -= usd or 0.0
        return None

    def left_usd(self, account: Account, pool: str) -> float:
        return self.usd

    def capped(self, pool: str) -> bool:
        return False

    def keep(self, pool: str, usd: float) -> None:
        self.usd -= usd

    def mark(self) -> int:
        self._marks.append((self.nodes, self.usd))
        return len(self._marks) - 1

    def rollback(self, mark: int) -> None:
        self.nodes, self.usd = self._marks[mark]


def quote(pool: str = "cloud", cores: int = 4, usd: float = 1.0, left: int | None = None) -> Quote:
    return Quote(Offer(pool, "mock", "type", cores, usd_per_node_hour=usd, nodes_left=left), 120.0, 120.0)


def pool(name: str = "cloud", *, fleet: tuple[FleetNode, ...] = (), hosts: int = 10, cores: int = 4) -> PoolState:
    declared = {Host(f"{name}-{index}"): index for index in range(hosts)}
    taken = {node.host for node in fleet}
    free = tuple(host for host in declared if host not in taken)
    return PoolState(name, "mock", cores, 0, frozenset({name}), declared, fleet, free, boot_s=600.0, tail_s=60.0)


def node(index: int, *, cores: int = 4, up: bool = True, paid_until_at: float = 1e9) -> FleetNode:
    return FleetNode(
        Host(f"cloud-{index}"), cores, 0, cores == 4, up, paid_until_at=paid_until_at, usd_per_node_hour=1.0
    )


def gang(nodes: int, duration_s: float = 3600) -> Demand:
    return Demand(nodes, nodes, 1, exclusive=True, duration_s=duration_s)


def cores(count: int, duration_s: float = 3600) -> Demand:
    return Demand(0, 1, count, duration_s=duration_s)


def ask(number: int, demand: Demand, *, pools: tuple[str, ...] = ("cloud",), **fields: object) -> Request:
    return Request(JobId(number), Shape(demand, pools), (-16, number), **fields)  # type: ignore[arg-type]


def moment(
    *requests: Request,
    now: float = 0.0,
    pools: tuple[PoolState, ...] = (pool(),),
    market: Stall | None = None,
    draft: Purse | None = None,
    rules: Rules | None = None,
) -> Moment:
    return Moment(
        now,
        {request.job_id: request for request in requests},
        {each.name: each for each in pools},
        market or Stall(*(quote(each.name, each.cores) for each in pools)),
        draft or Purse(),
        rules or Rules(),
    )


def told(plan: Plan, request: Request) -> Verdict:
    return plan.verdicts[request.job_id]


def bought(plan: Plan) -> list[int]:
    """The number of nodes of each order."""
    return [len(purchase.hosts) for purchase in plan.purchases]


def scanned(planner: Planner, at: Moment) -> Plan:
    """A plan for which every tick has passed: the second of two, in the first of which nobody had been asked."""
    planner.plan(dataclasses.replace(at, market=Stall(quiet=True)))
    return planner.plan(dataclasses.replace(at, now=at.now + 10.0))


@pytest.mark.parametrize("rival", RIVALS)
def test_every_job_gets_exactly_one_verdict_and_one_that_is_bought_for_all_its_nodes(rival: type[Planner]) -> None:
    jobs = (ask(1, gang(3)), ask(2, gang(2)), ask(3, gang(20)))
    plan = scanned(rival(), moment(*jobs))
    assert plan.verdicts.keys() == {1, 2, 3}
    assert told(plan, jobs[0]).kind is VerdictKind.BURST
    assert len(told(plan, jobs[0]).hosts) == 3
    assert told(plan, jobs[2]).kind is VerdictKind.REFUSED
    hosts = [host for purchase in plan.purchases for host in purchase.hosts]
    assert len(hosts) == len(set(hosts))
    assert set(hosts) <= set(plan.booked)


@pytest.mark.parametrize("rival", RIVALS)
def test_a_job_keeps_what_it_was_promised_and_nothing_is_bought_for_it_again(rival: type[Planner]) -> None:
    planner, job = rival(), ask(1, gang(2))
    first = scanned(planner, moment(job))
    hosts = told(first, job).hosts
    coming = tuple(node(index, up=False) for index in range(2))
    # a job that nothing happened to asks as it did before; a planner made anew is told what it was promised
    for other, again in ((planner, job), (rival(), dataclasses.replace(job, booked=("cloud", hosts)))):
        plan = other.plan(moment(again, now=20.0, pools=(pool(fleet=coming),)))
        assert (told(plan, job).kind, told(plan, job).hosts, plan.purchases) == (VerdictKind.COMING, hosts, ())


@pytest.mark.parametrize("rival", RIVALS)
def test_a_cap_holds_and_the_job_that_it_binds_waits(rival: type[Planner]) -> None:
    jobs = [ask(number, gang(2)) for number in range(1, 6)]
    plan = scanned(rival(), moment(*jobs, draft=Purse(nodes=5)))
    assert sum(bought(plan)) <= 5
    usd = (600 + 3600 + 60) / 3600
    plan = scanned(rival(), moment(*jobs, draft=Purse(usd=3.5 * usd)))
    assert 0 < sum(bought(plan)) <= 3
    assert {verdict.kind for verdict in plan.verdicts.values()} >= {VerdictKind.WAIT}


@pytest.mark.parametrize("rival", RIVALS)
def test_who_has_to_be_asked_is_named_and_the_job_is_undecided(rival: type[Planner]) -> None:
    job = ask(1, gang(2))
    plan = scanned(rival(), moment(job, market=Stall(quiet=True)))
    assert {provider for provider, _ in plan.asks} == {"mock"}
    assert plan.undecided == {1}


@pytest.mark.parametrize("rival", RIVALS)
def test_a_jobs_own_wait_and_limit_are_obeyed(rival: type[Planner]) -> None:
    late = ask(1, gang(2), not_before_at=100.0)
    plan = scanned(rival(), moment(late))
    assert (told(plan, late).kind, told(plan, late).until_at, plan.purchases) == (VerdictKind.WAIT, 100.0, ())
    dear = ask(2, gang(2))
    plan = scanned(rival(), moment(dear, rules=Rules(usd_per_job=1.9)))
    assert (told(plan, dear).kind, plan.purchases) == (VerdictKind.REFUSED, ())
    plan = scanned(rival(), moment(dear, rules=Rules(usd_per_job=2.1)))
    assert bought(plan) == [2]


@pytest.mark.parametrize("rival", RIVALS)
def test_a_refusal_that_passes_lets_a_job_wait_and_one_for_good_refuses_it(rival: type[Planner]) -> None:
    job = ask(1, gang(2))
    plan = scanned(rival(), moment(job, market=Stall(Refusal("cloud", "mock", "sold out", 50.0))))
    assert (told(plan, job).kind, told(plan, job).until_at) == (VerdictKind.WAIT, 50.0)
    assert plan.again_at == 50.0
    plan = scanned(rival(), moment(job, market=Stall(Refusal("cloud", "mock", "never"))))
    assert told(plan, job).kind is VerdictKind.REFUSED


@pytest.mark.parametrize("rival", RIVALS)
def test_warm_nodes_are_bought_as_asked(rival: type[Planner]) -> None:
    at = dataclasses.replace(moment(pools=(pool(fleet=(node(0),)),)), holds={"cloud": 3})
    plan = rival().plan(at)
    assert bought(plan) == [2]
    assert plan.unmet == {}


@pytest.mark.parametrize("rival", RIVALS)
def test_only_verdicts_that_say_something_new_are_told_as_changed(rival: type[Planner]) -> None:
    planner, job = rival(), ask(1, gang(20))
    assert scanned(planner, moment(job)).changed
    assert not planner.plan(moment(job, now=10.5)).changed


def test_one_burst_a_job_shares_nothing() -> None:
    jobs = (ask(1, cores(1)), ask(2, cores(1)))
    plan = OneBurstAJob().plan(moment(*jobs, pools=(pool(fleet=(node(0),)),)))
    assert bought(plan) == [1, 1]


def test_one_burst_a_job_takes_the_nodes_of_the_one_that_took_its_own() -> None:
    swapped = ask(1, gang(1), booked=("cloud", (Host("cloud-1"),)))
    fleet = (node(0), node(1, cores=0))
    plan = OneBurstAJob().plan(moment(swapped, pools=(pool(fleet=fleet),)))
    # the promised node is there, and is another job's now
    assert (told(plan, swapped).hosts, plan.purchases) == ((Host("cloud-0"),), ())


def test_power_save_uses_idle_nodes_before_it_resumes_others() -> None:
    job = ask(1, gang(3))
    plan = PowerSave().plan(moment(job, pools=(pool(fleet=(node(0), node(1, cores=3))),)))
    assert bought(plan) == [2]
    assert Host("cloud-0") in told(plan, job).hosts
    assert Host("cloud-1") not in told(plan, job).hosts


def test_power_save_reserves_idle_nodes_for_as_long_as_it_needs_them() -> None:
    job = ask(1, gang(1))
    plan = PowerSave().plan(moment(job, pools=(pool(fleet=(node(0, paid_until_at=100.0),)),)))
    (extension,) = plan.extensions
    assert (extension.host, extension.until_at) == ("cloud-0", 3660.0)
    plan = PowerSave().plan(
        moment(job, pools=(pool(fleet=(node(0, paid_until_at=100.0),)),), draft=Purse(nodes=0, usd=0.5))
    )
    assert (told(plan, job).kind, plan.extensions) == (VerdictKind.WAIT, ())


def test_power_save_goes_job_by_job_and_never_for_what_would_fit_together() -> None:
    big, small = ask(2, cores(3)), ask(1, cores(2))
    plan = PowerSave().plan(moment(big, small, ask(3, cores(1))))
    assert bought(plan) == [1, 1]


def test_least_waste_buys_only_at_its_scans() -> None:
    planner, job = LeastWaste(), ask(1, gang(1))
    first = planner.plan(moment(job, now=3.0))
    assert (told(first, job).kind, first.purchases, first.again_at) == (VerdictKind.WAIT, (), 10.0)
    assert bought(planner.plan(moment(job, now=10.0))) == [1]


def test_least_waste_uses_free_and_coming_nodes_at_any_time() -> None:
    jobs = (ask(1, cores(4)), ask(2, cores(4)))
    plan = LeastWaste().plan(moment(*jobs, now=3.0, pools=(pool(fleet=(node(0), node(1, up=False))),)))
    assert {told(plan, job).kind for job in jobs} == {VerdictKind.COMING}


def test_least_waste_enlarges_the_group_with_the_least_idle_cpu() -> None:
    both = (pool("large", cores=16), pool("small", cores=4))
    jobs = [ask(number, cores(3), pools=("large", "small")) for number in range(1, 6)]
    plan = scanned(LeastWaste(), moment(*jobs, pools=both))  # 15 of 16 cores, or 15 of 20
    assert [(purchase.offer.pool, len(purchase.hosts)) for purchase in plan.purchases] == [("large", 1)]
    plan = scanned(LeastWaste(), moment(jobs[0], pools=both))
    assert [(purchase.offer.pool, len(purchase.hosts)) for purchase in plan.purchases] == [("small", 1)]


def test_least_waste_leaves_what_the_chosen_group_cannot_take_for_the_next_scan() -> None:
    both = (pool("large", cores=16), pool("small", cores=4))
    wide, narrow = ask(1, cores(9), pools=("large", "small")), ask(2, cores(4), pools=("large", "small"))
    planner = LeastWaste()
    plan = scanned(planner, moment(wide, narrow, pools=both))
    assert [purchase.offer.pool for purchase in plan.purchases] == ["small"]
    assert (told(plan, wide).kind, plan.again_at) == (VerdictKind.WAIT, 20.0)


def test_the_predecessor_makes_one_cluster_of_the_largest_jobs_size_and_runs_the_others_after_it() -> None:
    jobs = (ask(1, gang(2)), ask(2, gang(4)), ask(3, gang(1)))
    plan = Predecessor().plan(moment(*jobs))
    assert bought(plan) == [4]
    assert told(plan, jobs[1]).kind is VerdictKind.BURST
    assert {told(plan, jobs[0]).kind, told(plan, jobs[2]).kind} == {VerdictKind.WAIT}


def test_the_predecessors_cluster_stays_while_its_jobs_wait_and_serves_them_as_it_has_room() -> None:
    planner = Predecessor()
    large, small = ask(1, gang(2)), ask(2, gang(1))
    planner.plan(moment(large, small))
    busy = tuple(node(index, cores=0) for index in range(2))
    plan = planner.plan(moment(small, now=700.0, pools=(pool(fleet=busy),)))
    assert (told(plan, small).kind, set(plan.booked), plan.purchases) == (VerdictKind.WAIT, {"cloud-0", "cloud-1"}, ())
    plan = planner.plan(moment(small, now=800.0, pools=(pool(fleet=(node(0), busy[1])),)))
    assert told(plan, small).hosts == ("cloud-0",)


def test_the_predecessor_makes_a_new_cluster_for_new_jobs_whatever_is_there() -> None:
    planner, job = Predecessor(), ask(1, gang(1))
    plan = planner.plan(moment(job, pools=(pool(fleet=(node(0), node(1))),)))
    assert bought(plan) == [1]


def test_the_predecessor_makes_another_cluster_for_a_job_whose_nodes_never_came() -> None:
    planner, job = Predecessor(), ask(1, gang(2))
    planner.plan(moment(job))
    plan = planner.plan(moment(job, now=700.0, pools=(pool(fleet=(node(0),)),)))
    assert bought(plan) == [2]


def test_every_policy_keeps_burst_toml_but_for_what_it_says() -> None:
    text = 'cluster = "c"\n[lead]\nconnect = "tcp://h:1"\n[pool.p]\nprovider = "x"\nhosts = "a"\ncores = 1\n'
    plain = configuration.parse(text)
    idle = {name: policy.adapt(plain).pool["p"].idle_timeout for name, policy in POLICIES.items()}
    assert idle == {"ours": None, "predecessor": 1800, "one-burst-a-job": 1, "power-save": 300, "least-waste": 600}
    assert POLICIES["power-save"].adapt(plain).batching.max == 10
    assert POLICIES["ours"].adapt(plain) is plain
    for policy in POLICIES.values():
        assert policy.adapt(plain).pool["p"].model_copy(update={"idle_timeout": None}) == plain.pool["p"]


def test_a_pool_can_have_a_job_if_its_nodes_are_large_enough_and_many_enough() -> None:
    state = pool(hosts=3)
    assert policies.nodes_for(state, gang(3)) == 3
    assert policies.nodes_for(state, gang(4)) == 0
    assert policies.nodes_for(state, cores(5)) == 0
    assert policies.nodes_for(state, Demand(0, 9, 1)) == 3
