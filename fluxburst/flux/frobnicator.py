"""A frobnicator plugin for Flux's ingest (flux-config-ingest(5)): it routes burstable jobs and keeps the others home.

Flux's own Python loads this file by its path, on the lead: it may import nothing but the standard library and flux.
All it knows comes from the table ``[burst]`` and the ``[queues]`` of the broker's configuration, as
``flux burst config render`` writes them; it makes no RPC.

Queue mode: a burstable job that its own queue's nodes could never run goes to the staging queue, where it waits for
nodes of a pool; a job that is not burstable is refused in a pool's queue and in staging. Open mode: a job that is not
burstable gets a constraint (RFC 31) that keeps it off all pools' nodes. In both, near-misses of the mark are refused.
"""

# Flux runs on Python 3.6 too, where today's annotations do not parse.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"

import re

try:
    from flux.job.frobnicator import FrobnicatorPlugin
except ImportError:  # the mock Flux and the tests use it where there is no Flux
    FrobnicatorPlugin = object


def burstable(system):
    """Is ``attributes.system.burstable`` true, 1 or a table? Flux makes 1 of a bare ``--setattr=burstable``."""
    value = system.get("burstable")
    return isinstance(value, dict) or (isinstance(value, (int, float)) and value == 1)


def refuse_near_misses(system):
    """Refuse a job that all but says that it may burst: left alone, it would silently stay home.

    Raises:
        ValueError: the message says what to write.
    """
    value, options = system.get("burstable"), system.get("burst")
    if value and not burstable(system):
        raise ValueError(f"burstable={value}: write --setattr=burstable=true, or leave it out")
    if value is None and options:
        name = f"burst.{next(iter(options))}" if isinstance(options, dict) else "burst"
        raise ValueError(f"{name} has no effect without --setattr=burstable=true: add it, or leave {name} out")


def least(count):
    """The smallest number that a resource count allows: an integer, a range (RFC 14) or its text form (RFC 45)."""
    if isinstance(count, dict):
        return count["min"]
    if isinstance(count, str):
        return min(int(number) for number in re.findall(r"\d+", count.split(":")[0]))
    return count


def request(resources):
    """The least (nodes, slots, cores per slot, GPUs per slot) that a version 1 jobspec (RFC 25) asks for.

    ``nodes`` is 0 when it only counts slots; else ``slots`` are those of each node. None for any other form.
    """
    nodes = 0
    if len(resources) == 1 and resources[0]["type"] == "node":
        nodes, resources = least(resources[0]["count"]), resources[0].get("with", [])
    if len(resources) != 1 or resources[0]["type"] != "slot":
        return None
    per_slot = {"core": 0, "gpu": 0}
    for child in resources[0].get("with", []):
        if child["type"] not in per_slot or "with" in child:
            return None
        per_slot[child["type"]] += least(child["count"])
    return nodes, least(resources[0]["count"]), per_slot["core"], per_slot["gpu"]


def fits(wanted, capacity):
    """Could these nodes run it when all are free? ``capacity`` is a list of (count, cores, GPUs)."""
    nodes, slots, cores, gpus = wanted

    def places(node_cores, node_gpus):
        limits = [have // each for have, each in ((node_cores, cores), (node_gpus, gpus)) if each]
        return min(limits, default=slots)

    if nodes:
        return nodes <= sum(count for count, *node in capacity if places(*node) >= slots)
    return slots <= sum(count * places(*node) for count, *node in capacity)


class Frobnicator(FrobnicatorPlugin):
    def __init__(self, parser=None):
        """Adds no option to the parser, which Flux gives and others need not."""

    def configure(self, args, config):
        """Read the configuration once.

        Raises:
            ValueError: ``[burst]`` is absent or malformed; the message names the key. Flux logs it and refuses all
                jobs, as it does for its own plugins.
        """
        where = "[burst]"
        try:
            burst = config["burst"]
            where = "[burst] mode"
            self.mode = burst["mode"]
            if self.mode not in ("queue", "open"):
                raise ValueError(f"is {self.mode!r}, not 'queue' or 'open'")
            where = "[burst] pools"
            pools = list(burst["pools"].values())
            if self.mode == "open":
                self.away = ["^" + pool["property"] for pool in pools]
                return
            where = "[burst] staging"
            self.staging = burst["staging"]
            where = "[burst] pools"
            self.reserved = {self.staging, *(pool["queue"] for pool in pools)}
            where = "[burst] capacity"
            nodes = [((n["count"], n["cores"], n["gpus"]), set(n["properties"])) for n in burst["capacity"]]
            where = "[queues]"
            self.queues = config["queues"]
            missing = self.reserved - self.queues.keys()
            if missing:
                raise ValueError(f"lacks {', '.join(sorted(missing))}")
            self.capacity = {
                name: [shape for shape, properties in nodes if properties.issuperset(queue.get("requires", ()))]
                for name, queue in self.queues.items()
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{where}: {what}; write it with `flux burst config render`") from None

    def frob(self, jobspec, userid, urgency, flags):
        system = (jobspec.attributes or {}).get("system", {})
        refuse_near_misses(system)
        if self.mode == "queue":
            self.route(jobspec, system)
        elif not burstable(system):
            self.keep_home(jobspec, system)

    def route(self, jobspec, system):
        queue = system.get("queue")
        if not burstable(system):
            if queue in self.reserved:
                others = sorted(self.queues.keys() - self.reserved)
                raise ValueError(
                    f"queue '{queue}' takes burstable jobs only: add --setattr=burstable, "
                    f"or choose another queue ({', '.join(others)})"
                )
            return
        # Flux moves no job that has constraints of its own (job-manager, queue update), so such a job stays.
        if queue in self.reserved or queue not in self.queues or system.get("constraints"):
            return
        if jobspec.version != 1:
            return
        wanted = request(jobspec.resources)
        if wanted and not fits(wanted, self.capacity[queue]):
            jobspec.setattr("system.queue", self.staging)

    def keep_home(self, jobspec, system):
        own = system.get("constraints")
        away = {"properties": list(self.away)}  # a copy: the plugin "constraints" appends to it
        if not own:
            jobspec.setattr("system.constraints", away)
        elif not any(set(self.away).issubset(term.get("properties", ())) for term in [own, *own.get("and", ())]):
            jobspec.setattr("system.constraints", {"and": [own, away]})
