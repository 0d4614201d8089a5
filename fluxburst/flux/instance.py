"""A real Flux instance behind :class:`fluxburst.flux.protocol.Instance`."""

from __future__ import annotations

import base64
import errno
import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import lru_cache
from typing import Any, Self, TypeVar

from fluxburst import hostlist
from fluxburst.errors import Disconnected, FluxburstError, InstanceError
from fluxburst.flux import bindings
from fluxburst.flux.loop import FluxLoop, LoopFuture
from fluxburst.flux.protocol import (
    JOB_EVENTS,
    Caller,
    CaughtUp,
    ConnectionLost,
    InstanceEvent,
    JobEvent,
    ResourceEvent,
    RpcHandler,
)
from fluxburst.model import Host, HostShare, InstanceFacts, JobId

T = TypeVar("T")

SERVICE = "burst"
"""The name under which :meth:`RealInstance.serve` is reached."""

_LEAD = 0
"""The rank of the services that are asked: job manager and resource."""

_SENTINEL_ID = -1
"""FLUX_JOBID_ANY, which marks the end of the job journal's past."""

_UNREGISTER_TIMEOUT_S = 5.0

_GONE = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN})
"""How a call fails when its own broker has gone away."""


class RealInstance:
    """:class:`fluxburst.flux.protocol.Instance` on a connection to a broker, normally the lead's own.

    Its futures cannot be cancelled. What a broker refuses becomes an :class:`InstanceError` that tells what was tried
    and the broker's own words; what is still open when the connection goes becomes :class:`Disconnected`.
    """

    def __init__(self, uri: str | None = None, *, loop: FluxLoop | None = None) -> None:
        """See :meth:`open`, which words the errors."""
        self._handle: Any = bindings.connect(uri)
        self._loop = loop or FluxLoop()
        self._loop.attach(self._handle, self._on_disconnect)
        self._pending: dict[Any, tuple[str, Future[Any]]] = {}
        self._journals: _Journals | None = None
        self._requests: Any = None
        try:
            self._facts = _read_facts(self._handle)
        except BaseException:
            self.close()
            raise
        self._ranks = {host: rank for rank, host in enumerate(self._facts.hosts)}

    @classmethod
    def open(cls, uri: str | None = None, *, loop: FluxLoop | None = None) -> Self:
        """Connect to the instance at ``uri``, or to the enclosing one, and read its facts.

        ``loop`` lets a new connection take over the loop of one that was lost.

        Raises:
            BindingsMissing: the Flux Python bindings cannot be imported.
            InstanceError: no broker answers there, the caller does not own the instance, or it cannot be used.
        """
        where = uri or "the enclosing Flux instance"
        try:
            instance = cls(uri, loop=loop)
        except OSError as error:
            raise InstanceError(f"{where}: {error.strerror}") from error
        except ValueError as error:
            raise InstanceError(f"{where}: {error}; fluxburst needs one broker for each host name") from error
        owner = instance.facts.owner_uid
        if owner != os.getuid():
            instance.close()
            raise InstanceError(f"{where} belongs to user id {owner}, not to {os.getuid()}; run as its owner")
        return instance

    @property
    def facts(self) -> InstanceFacts:
        return self._facts

    @property
    def loop(self) -> FluxLoop:
        return self._loop

    def subscribe(self, sink: Callable[[InstanceEvent], None]) -> None:
        """See the protocol. The past comes job by job, the jobs in no order, each job's events in theirs.

        After a :class:`ConnectionLost` because of a journal the same connection may be subscribed to again.

        Raises:
            Disconnected: the connection is gone.
        """
        if self._journals is not None:
            raise InstanceError("this connection has a subscriber already")
        if self._handle is None:
            raise Disconnected("cannot subscribe: the connection to the broker is closed")
        self._journals = _Journals(self._handle, self._loop, self._facts.hosts, sink, self._forget_journals)

    def move(self, job_id: JobId, queue: str) -> Future[None]:
        return self._call(
            f"move job {job_id} to queue {queue}",
            "job-manager.update",
            {"id": job_id, "updates": {"attributes.system.queue": queue}},
        )

    def memo(self, job_id: JobId, memo: Mapping[str, Any]) -> Future[None]:
        return self._call(f"set the memo of job {job_id}", "job-manager.memo", {"id": job_id, "memo": memo})

    def submit(self, jobspec: Mapping[str, Any], *, urgency: int = 16) -> Future[JobId]:
        from flux.job import submit_async

        return self._track(
            "submit a job",
            lambda: submit_async(self._handle, json.dumps(jobspec), urgency=urgency),
            lambda future: JobId(int(future.get_id())),
        )

    def jobspec(self, job_id: JobId) -> Future[Mapping[str, Any]]:
        def submitted(rpc: Any) -> Mapping[str, Any]:
            # J is the signed request, HEADER.PAYLOAD.SIGNATURE in base 64. The key "jobspec" would give what the
            # frobnicators made of it: submitted once more, it would get its queue's constraints twice.
            jobspec: dict[str, Any] = json.loads(base64.b64decode(rpc.get()["J"].split(".")[1]))
            return jobspec

        return self._call(
            f"read the jobspec of job {job_id}",
            "job-info.lookup",
            {"id": job_id, "keys": ["J"], "flags": 0},
            submitted,
        )

    def drain(self, hosts: Collection[Host], reason: str) -> Future[None]:
        return self._call(
            f"drain {hostlist.fold(hosts)}",
            "resource.drain",
            # "overwrite" gives those that are drained already the new reason; "update" would keep the old.
            {"targets": ",".join(hosts), "reason": reason, "mode": "overwrite"},
        )

    def undrain(self, hosts: Collection[Host]) -> Future[None]:
        return self._call(
            f"undrain {hostlist.fold(hosts)}",
            "resource.undrain",
            # Without "update" the whole request fails if one of them is not drained.
            {"targets": ",".join(hosts), "mode": "update"},
        )

    def allocated(self) -> Future[frozenset[Host]]:
        """See the protocol.

        The authority is the job manager: it holds every R from the scheduler's alloc response to its own free request,
        housekeeping included, under any scheduler. ``flux resource list`` asks it too (``resource.sched-status`` adds
        only what is up and down); to ask the scheduler, Fluxion would have to walk its graph while it should schedule.
        """

        def hosts(rpc: Any) -> frozenset[Host]:
            return frozenset(share.host for share in host_shares(rpc.get()["allocated"], self._facts.hosts))

        return self._call("list the allocated hosts", "job-manager.resource-status", None, hosts)

    def stop_brokers(self, hosts: Collection[Host]) -> Future[None]:
        """See the protocol. A host whose broker is gone already is fine; one that is not declared is an error."""
        from flux.subprocess import rexec_bg

        # A process of the rexec service is the broker's own child. It answers when that has started, so the answer is
        # out before the broker begins to leave; there is no pid to go stale, and no flux command to be found there.
        kill = ["/bin/sh", "-c", 'kill -TERM "$PPID"']

        def stop(host: Host) -> Future[None]:
            what = f"stop the broker of {host}"
            if host not in self._ranks:
                return self._failed(InstanceError(f"cannot {what}: this instance has no such host"))
            return self._track(
                what,
                lambda: rexec_bg(self._handle, kill, cwd="/", env={}, nodeid=self._ranks[host]),
                _unless_unreachable,
            )

        return self._all([stop(host) for host in hosts])

    def set_queue(self, queue: str, *, started: bool) -> Future[None]:
        return self._call(
            f"{'start' if started else 'stop'} queue {queue}",
            "job-manager.queue-start",
            {"name": queue, "start": started, "all": False},
        )

    def serve(self, handler: RpcHandler) -> None:
        """See the protocol. Guests are let in too: ``Caller.owner`` tells them apart.

        What ``handler`` raises beside :class:`FluxburstError` is answered as an internal error and stops the loop.

        Raises:
            InstanceError: the name is taken: another fluxburst service runs on this instance.
        """
        from flux.constants import FLUX_MSGTYPE_REQUEST, FLUX_ROLE_ALL

        try:
            with self._handle.in_reactor():  # see _read_facts
                self._handle.service_register(SERVICE).get()
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise InstanceError(
                    "another fluxburst service already runs on this instance; stop that first"
                ) from error
            raise _error(f"register the service {SERVICE}", error) from error

        def on_request(_handle: object, _watcher: object, message: Any, _args: object) -> None:
            self._answer(message, handler)

        self._requests = self._handle.msg_watcher_create(
            self._loop.guard(on_request), FLUX_MSGTYPE_REQUEST, f"{SERVICE}.*", rolemask=FLUX_ROLE_ALL
        )
        self._requests.start()

    def close(self) -> None:
        self._close("the connection was closed")

    def _close(self, reason: str) -> None:
        handle, self._handle = self._handle, None
        if handle is None:
            return
        if self._journals is not None:
            self._journals.cancel()
            self._journals = None
        if self._requests is not None:
            self._requests.destroy()
            # The broker would do this by itself, but some time after we are gone.
            with suppress(OSError), handle.in_reactor():
                handle.service_unregister(SERVICE).wait_for(_UNREGISTER_TIMEOUT_S)
        pending, self._pending = self._pending, {}
        for rpc in pending:
            _destroy(rpc)
        self._loop.release(handle)
        for what, done in pending.values():
            done.set_exception(Disconnected(f"cannot {what}: {reason}"))

    def _on_disconnect(self) -> None:
        journals = self._journals
        self._close("the connection to the broker is gone")
        if journals is not None:
            journals.lose("the connection to the broker is gone")

    def _forget_journals(self) -> None:
        self._journals = None

    def _call(
        self,
        what: str,
        topic: str,
        payload: Mapping[str, Any] | None,
        result: Callable[[Any], T] = lambda rpc: rpc.get(),
    ) -> Future[T]:
        return self._track(what, lambda: self._handle.rpc(topic, payload, _LEAD), result)

    def _track(self, what: str, send: Callable[[], Any], result: Callable[[Any], T]) -> Future[T]:
        """Send a request; ``result`` turns the fulfilled Flux future into the answer. ``what`` goes after "cannot"."""
        if self._handle is None:
            return self._failed(Disconnected(f"cannot {what}: the connection to the broker is closed"))
        try:
            rpc = send()
        except OSError as error:
            return self._failed(_error(what, error))
        done: LoopFuture[T] = LoopFuture(self._loop)

        def on_response(_rpc: object) -> None:
            del self._pending[rpc]
            try:
                value = result(rpc)
            except OSError as error:
                done.set_exception(_error(what, error))
            else:
                done.set_result(value)

        self._pending[rpc] = what, done
        rpc.then(self._loop.guard(on_response))
        return done

    def _failed(self, error: InstanceError) -> Future[Any]:
        done: LoopFuture[Any] = LoopFuture(self._loop)
        done.set_exception(error)
        return done

    def _all(self, futures: Sequence[Future[None]]) -> Future[None]:
        """Completed when all of them are, with the first one's error if any has one."""
        done: LoopFuture[None] = LoopFuture(self._loop)
        left = len(futures)

        def on_done(_future: object) -> None:
            nonlocal left
            left -= 1
            if left:
                return
            error = next((error for future in futures if (error := future.exception()) is not None), None)
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        for future in futures:
            future.add_done_callback(on_done)
        return done

    def _answer(self, message: Any, handler: RpcHandler) -> None:
        method = message.topic.removeprefix(f"{SERVICE}.")
        if method == "disconnect":  # the broker's word that some client has gone; not to be answered (RFC 6)
            return
        owner = bool(message.rolemask & self._handle.lib.FLUX_ROLE_OWNER)
        try:
            payload = json.loads(message.payload_str or "{}")
            response = handler(method, payload, Caller(userid=message.userid, owner=owner))
        except (FluxburstError, json.JSONDecodeError) as error:
            self._handle.respond_error(message, errno.EINVAL, str(error))
        except BaseException:
            self._handle.respond_error(message, errno.EIO, "the burst service failed; its log tells why")
            raise
        else:
            self._handle.respond(message, response)


class _Journals:
    """One subscription: the journals of the job manager and of the resource module, from their past to their end."""

    def __init__(
        self,
        handle: Any,
        loop: FluxLoop,
        hosts: tuple[Host, ...],
        sink: Callable[[InstanceEvent], None],
        forget: Callable[[], None],
    ) -> None:
        self._handle = handle
        self._loop = loop
        self._hosts = hosts
        self._sink = sink
        self._forget = forget
        self._behind = 2
        """How many journals have yet to deliver their past."""
        self._online: set[Host] = set()
        self._drained: dict[Host, str] = {}
        self._streams: dict[str, Any] = {}
        self._status: Any = None
        try:
            self._follow("resource.journal", {}, self._on_resource)
            self._follow(
                "job-manager.events-journal", {"full": False, "allow": dict.fromkeys(JOB_EVENTS, 1)}, self._on_job
            )
        except OSError as error:
            self.cancel()
            raise _error("subscribe", error) from error

    def cancel(self) -> None:
        """Deliver nothing more."""
        from flux.constants import FLUX_RPC_NORESPONSE

        streams, self._streams = self._streams, {}
        for topic, stream in streams.items():
            with suppress(OSError):  # the broker is gone, and the stream with it
                self._handle.rpc(
                    f"{topic}-cancel", {"matchtag": stream.pimpl.get_matchtag()}, _LEAD, FLUX_RPC_NORESPONSE
                )
            _destroy(stream)
        if self._status is not None:
            _destroy(self._status)
            self._status = None

    def lose(self, reason: str) -> None:
        """Deliver :class:`ConnectionLost` and nothing more."""
        self.cancel()
        self._forget()
        self._sink(ConnectionLost(time.time(), reason))

    def _follow(self, topic: str, payload: Mapping[str, Any], deliver: Callable[[Any], None]) -> None:
        from flux.constants import FLUX_RPC_STREAMING

        stream = self._handle.rpc(topic, payload, _LEAD, FLUX_RPC_STREAMING)

        def on_response(_stream: object) -> None:
            try:
                response = stream.get()
            except OSError as error:
                ended = "ended because its module was unloaded" if error.errno == errno.ENODATA else error.strerror
                self.lose(f"{topic}: {ended}")
                return
            stream.reset()
            deliver(response)

        self._streams[topic] = stream
        stream.then(self._loop.guard(on_response))

    def _on_job(self, response: Mapping[str, Any]) -> None:
        """One response of job-manager.events-journal: the past events of one job, one live event, or the sentinel.

        Jobspec and R come beside the events: with each job's past, and live with ``submit`` and ``alloc``.
        """
        if response["id"] == _SENTINEL_ID:
            self._caught_up()
            return
        job_id = JobId(response["id"])
        for entry in response["events"]:
            name = entry["name"]
            self._sink(
                JobEvent(
                    job_id,
                    name,
                    entry["timestamp"],
                    entry.get("context", {}),
                    jobspec=response["jobspec"] if name == "submit" else None,
                    allocation=host_shares(response["R"], self._hosts) if name == "alloc" else (),
                )
            )

    def _on_resource(self, response: Mapping[str, Any]) -> None:
        """One response of resource.journal: events in order, or none at all when the past is over."""
        if not response["events"]:
            self._ask_status()
        for entry in response["events"]:
            at, context = entry["timestamp"], entry.get("context", {})
            match entry["name"]:
                case "restart":  # comes when the module has loaded; its "online" is normally empty
                    self._came(at, self._named(context["online"]))
                case "online":
                    self._came(at, self._named(context["idset"]))
                case "offline":
                    self._went(at, self._named(context["idset"]))
                case "drain":
                    self._was_drained(at, self._listed(context["nodelist"]), context.get("reason") or "")
                case "undrain":
                    self._was_undrained(at, self._listed(context["nodelist"]))

    def _ask_status(self) -> None:
        """At the end of the past, ask for the state itself.

        The past may be incomplete: a drain from before the instance's last restart is in the module's checkpoint and
        no longer in its event log, and the journal keeps no more than ``resource.journal-max`` events. The module
        answers in order, so its answer is the state exactly after the events that have come by then.
        """
        self._status = self._handle.rpc("resource.status", None, _LEAD)

        def on_response(_status: object) -> None:
            try:
                status = self._status.get()
            except OSError as error:
                self.lose(f"resource.status: {error.strerror}")
                return
            self._status = None
            self._settle(status)
            self._caught_up()

        self._status.then(self._loop.guard(on_response))

    def _settle(self, status: Mapping[str, Any]) -> None:
        now = time.time()
        online = self._named(status["online"])
        self._went(now, [host for host in self._online if host not in online])
        self._came(now, [host for host in online if host not in self._online])
        drained = {
            host: (info["timestamp"], info.get("reason") or "")
            for idset, info in status["drain"].items()
            for host in self._named(idset)
        }
        self._was_undrained(now, [host for host in self._drained if host not in drained])
        for host, (at, reason) in drained.items():
            if self._drained.get(host) != reason:
                self._was_drained(at, [host], reason)

    def _caught_up(self) -> None:
        self._behind -= 1
        if not self._behind:
            self._sink(CaughtUp(time.time()))

    def _came(self, at: float, hosts: Collection[Host]) -> None:
        self._online.update(hosts)
        self._tell("online", at, hosts)

    def _went(self, at: float, hosts: Collection[Host]) -> None:
        self._online.difference_update(hosts)
        self._tell("offline", at, hosts)

    def _was_drained(self, at: float, hosts: Collection[Host], reason: str) -> None:
        self._drained.update(dict.fromkeys(hosts, reason))
        self._tell("drain", at, hosts, reason)

    def _was_undrained(self, at: float, hosts: Collection[Host]) -> None:
        drained = [host for host in hosts if self._drained.pop(host, None) is not None]
        self._tell("undrain", at, drained)

    def _tell(self, name: str, at: float, hosts: Collection[Host], reason: str = "") -> None:
        if hosts:
            self._sink(ResourceEvent(name, at, tuple(hosts), reason))

    def _named(self, idset: str) -> list[Host]:
        """The hosts of these ranks. A past log may hold ranks of a time when the instance was larger."""
        return [self._hosts[rank] for rank in sorted(_ids(idset)) if rank < len(self._hosts)]

    def _listed(self, nodelist: str) -> list[Host]:
        """The hosts of this list that still are in the instance; ranks of a past log may mean others today."""
        known = set(self._hosts)
        return [host for host in hostlist.expand(nodelist) if host in known]


def host_shares(resources: Mapping[str, Any], hosts: tuple[Host, ...]) -> tuple[HostShare, ...]:
    """What an R (RFC 20) of an instance with these hosts, in rank order, holds on each of them, in rank order."""
    shares = {
        rank: HostShare(hosts[rank], len(_ids(children.get("core", ""))), len(_ids(children.get("gpu", ""))))
        for entry in resources["execution"]["R_lite"]
        for children in [entry["children"]]
        for rank in _ids(entry["rank"])
    }
    return tuple(shares[rank] for rank in sorted(shares))


@lru_cache(maxsize=4096)
def _ids(idset: str) -> frozenset[int]:
    return hostlist.ids(idset) if idset else frozenset()


def _read_facts(handle: Any) -> InstanceFacts:
    # Outside of a reactor, a future that fails in get() leaves SIGINT at its default action.
    with handle.in_reactor():
        config = handle.conf_get()
    return InstanceFacts(
        version=handle.attr_get("version"),
        owner_uid=int(handle.attr_get("security.owner")),
        hosts=hostlist.expand(handle.attr_get("hostlist")),
        config=config,
        queues=tuple(config.get("queues", {})),
    )


def _unless_unreachable(rpc: Any) -> None:
    try:
        rpc.get()
    except OSError as error:
        if error.errno != errno.EHOSTUNREACH:
            raise


def _destroy(future: Any) -> None:
    """Free a Flux future now, so that its callback is not called, rather than when Python collects it."""
    with future:
        pass


def _error(what: str, error: OSError) -> InstanceError:
    kind = Disconnected if error.errno in _GONE else InstanceError
    return kind(f"cannot {what}: {error.strerror}")
