"""The words between the planner and its neighbours: what jobs ask for, what there is, what may be spent; and a plan.

Frozen types and protocols only. :mod:`fluxburst.plan` decides, :mod:`fluxburst.forecast`, :mod:`fluxburst.offers` and
:mod:`fluxburst.budget` inform it, the controller brings them together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fluxburst.model import Account, Demand, Host, JobId, Offer, Refusal, RequestId, Shrink, Verdict

NOBODY = Account()
"""Whom no cap names."""

Order = tuple[int, int]
"""The scheduler's order: minus the priority, then the job id, which grows with age (RFC 19)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What jobs have in common that are planned alike. The controller keeps one object for equal shapes.

    ``pools`` are the pools that the jobs admit, in burst.toml's order; ``max_usd`` is ``burst.max_usd``; ``account``
    names only what some cap asks for.
    """

    demand: Demand
    pools: tuple[str, ...]
    max_usd: float | None = None
    account: Account = NOBODY


@dataclass(frozen=True, slots=True)
class Request:
    """One job that asks.

    ``queue`` is where it waits at home; ``home_at`` is the scheduler's own forecast, where it makes one.
    ``not_before_at`` is ``burst.wait``'s end. ``booked`` is what its latest verdict named, ``(pool, hosts)``: it keeps
    these hosts while they can be had, so that planning again shuffles nobody and buys nothing in vain.
    """

    job_id: JobId
    shape: Shape
    order: Order
    queue: str = ""
    home_at: float | None = None
    not_before_at: float = 0.0
    booked: tuple[str, tuple[Host, ...]] = ("", ())


@dataclass(frozen=True, slots=True)
class Resident:
    """A job that waits at home and cannot burst: it takes its place there before those that come after it."""

    order: Order
    demand: Demand
    queue: str = ""
    home_at: float | None = None


@dataclass(frozen=True, slots=True)
class FleetNode:
    """One node that is up or on its way, with what nobody holds of it now.

    ``at`` is when it can be used: 0 when it is up, else when its broker is expected, at ``latest_at`` at the latest.
    ``end_at`` is when what runs there is expected to have ended (0: nothing runs). ``paid_until_at`` is how long the
    ledger has it reserved for. ``whole`` is False once anyone holds a part of it. ``usd_per_node_hour`` is what it was
    bought at, and whether on ``spot``. ``request_id`` is its order's (None: it was not bought).
    """

    host: Host
    cores: int
    gpus: int
    whole: bool
    up: bool
    at: float = 0.0
    latest_at: float = 0.0
    end_at: float = 0.0
    paid_until_at: float = 0.0
    usd_per_node_hour: float | None = None
    spot: bool = False
    request_id: RequestId | None = None


@dataclass(frozen=True, slots=True)
class PoolState:
    """One pool at the moment of planning.

    ``declared`` is all its hosts with their ranks; ``fleet`` those that are up or coming; ``free`` those that may be
    ordered now, in order. Where there are ``blocks`` of hosts, an order takes the beginning of one that no other order
    has any of. ``failing`` is True after a launch or boot failed, until a node serves again: then every job's nodes are
    ordered apart. ``closed`` says why nothing may be bought in it now (empty: it may),
    ``closed_until_at`` until when, ``closed_fix`` what would open it before. ``boot_s`` and ``tail_s`` are what a
    node's reserved life has before and after its jobs at the most: the join timeout; idling (``idle_s`` of it),
    stopping and being released. ``least_s`` is how long it lives at the least once it is up; ``shrink`` which nodes of
    an order leave together.
    """

    name: str
    provider: str
    cores: int
    gpus: int
    properties: frozenset[str]
    declared: Mapping[Host, int]
    fleet: tuple[FleetNode, ...] = ()
    free: tuple[Host, ...] = ()
    blocks: tuple[tuple[Host, ...], ...] = ()
    failing: bool = False
    closed: str = ""
    closed_until_at: float | None = None
    closed_fix: str = ""
    boot_s: float = 0.0
    tail_s: float = 0.0
    idle_s: float = 0.0
    least_s: float = 0.0
    billing_increment_s: float = 1.0
    billing_minimum_s: float = 0.0
    shrink: Shrink = Shrink.ANY


@dataclass(frozen=True, slots=True)
class Quote:
    """An offer as the planner sees it. ``offer.usd_per_node_hour`` is the price after the site's rules.

    ``join_s`` and ``join_p90_s`` are measured where there are ``samples``, the provider's guess before. ``closed`` is
    why it must not be bought now (its cooldown's reason), ``closed_until_at`` until when. ``rank`` is the place that
    the site's plugins gave it, lowest first; equal where they gave none, and cost decides.
    """

    offer: Offer
    join_s: float
    join_p90_s: float
    samples: int = 0
    closed: str = ""
    closed_until_at: float | None = None
    rank: int = 0


class Market(Protocol):
    """:mod:`fluxburst.offers` behind the planner's question."""

    def quotes(self, provider: str, demand: Demand, *, old: bool = False) -> Sequence[Quote | Refusal] | None:
        """A provider's answers to a demand in order of preference; None where it has to be asked (again) first.

        With ``old`` answers will do that are too old to be bought on. The same answers are the same object, so that
        what is derived from them can be kept.
        """


class Home(Protocol):
    """:mod:`fluxburst.forecast` behind the planner's question: the instance's own nodes over time."""

    def start_at(self, queue: str, demand: Demand) -> float:
        """When a job would start at home that is next in line now, POSIX seconds; infinite if never."""

    def take(self, queue: str, demand: Demand, start_at: float) -> None:
        """Let a job have its place, from ``start_at`` for its duration."""


@dataclass(frozen=True, slots=True)
class Cap:
    """A limit that binds: ``name`` as in burst.toml, ``unit`` "nodes" or "usd", ``until_at`` when its window ends."""

    name: str
    unit: str
    limit: float
    used: float
    until_at: float | None = None


class Draft(Protocol):
    """What one plan may still buy, by :mod:`fluxburst.budget`. All caps are asked here."""

    def allowed(self, account: Account, pool: str, usd_per_node: float | None) -> tuple[int, Cap | None]:
        """How many nodes at so much each (None: no price is known) may be bought, and the cap that binds next."""

    def take(self, account: Account, pool: str, nodes: int, usd_per_node: float | None) -> None:
        """Reserve that; never more than :meth:`allowed`."""

    def extend(self, account: Account, pool: str, usd: float | None) -> Cap | None:
        """Reserve more for nodes that are there, unless a cap forbids it, which is returned then."""

    def left_usd(self, account: Account, pool: str) -> float:
        """How many dollars the tightest cap leaves; infinite where none holds."""

    def capped(self, pool: str) -> bool:
        """Whether a dollar cap holds for everyone in this pool: one in all, of the pool or of its provider."""

    def keep(self, pool: str, usd: float) -> None:
        """Keep so much back from these caps, whether they have room for it or not."""

    def mark(self) -> int:
        """A point to go back to."""

    def rollback(self, mark: int) -> None:
        """Undo what was taken since."""


@dataclass(frozen=True, slots=True)
class Purchase:
    """Nodes to buy in one order, and the jobs that they are bought for (none: to keep the pool warm).

    ``account`` pays for them; ``until_at[i]`` is until when ``hosts[i]`` is reserved in the ledger.
    """

    offer: Offer
    hosts: tuple[Host, ...]
    job_ids: tuple[JobId, ...] = ()
    account: Account = NOBODY
    until_at: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Extension:
    """A node that is there is reserved for longer, on the account of the job that needs it for longer."""

    host: Host
    account: Account
    until_at: float


@dataclass(frozen=True, slots=True)
class Rules:
    """``[policy]`` and ``[limits]`` as the planner needs them. ``capped`` means that some dollar cap holds."""

    min_wait_s: float = 0.0
    max_usd_per_hour_saved: float | None = None
    assume_duration_s: float = 3600.0
    usd_per_job: float | None = None
    assume_usd_per_node_hour: float | None = None
    capped: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """All that one plan is made from.

    ``requests`` are all jobs that ask, by id; ``residents`` in the scheduler's order. ``changed_jobs`` and
    ``changed_pools`` are what differs from the moment before: a planner that has seen none is told everything.
    ``holds`` is pool to the number of nodes that it should have whether jobs need them or not.
    """

    now: float
    requests: Mapping[JobId, Request]
    pools: Mapping[str, PoolState]
    market: Market
    draft: Draft
    rules: Rules = Rules()
    home: Home | None = None
    residents: Sequence[Resident] = ()
    holds: Mapping[str, int] = field(default_factory=dict)
    changed_jobs: Collection[JobId] | None = None
    changed_pools: Collection[str] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """``asks`` are the questions that have to be answered before ``undecided`` jobs get more than a passing verdict.

    ``verdicts`` has one for every request, and may be the planner's own mapping, see :class:`Planner`. ``changed`` are
    the jobs whose verdict differs from the one in the planner's plan before. ``watches`` are the questions that are to
    be asked again before their answers are too old, as somebody waits for others. ``booked`` is every host that some
    verdict counts on, but for idle ones that are better given back until the jobs that want them can start.
    ``again_at`` is when time alone may change something. ``unmet`` are the pools whose warm nodes could not all be had,
    with the reason. ``kept`` is what is kept back in each pool for what Flux's choice of nodes may cost, in dollars.
    """

    verdicts: Mapping[JobId, Verdict]
    changed: Collection[JobId] = ()
    purchases: tuple[Purchase, ...] = ()
    extensions: tuple[Extension, ...] = ()
    asks: frozenset[tuple[str, Demand]] = frozenset()
    watches: Collection[tuple[str, Demand]] = ()
    undecided: frozenset[JobId] = frozenset()
    booked: Collection[Host] = frozenset()
    again_at: float | None = None
    unmet: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, float] = field(default_factory=dict)


class Planner(Protocol):
    """Decides. ``fluxburst.plan.Packer`` is ours; ``fluxburst.simulate.policies`` has others to compare with."""

    def plan(self, moment: Moment) -> Plan:
        """Give every request its verdict, and say what to buy. The same moments in the same order, the same plans.

        A plan's ``verdicts`` and ``booked`` may be live views of what the planner knows: they are as the latest plan
        left them, so who compares two plans copies the first one's before it asks for the second.
        """
