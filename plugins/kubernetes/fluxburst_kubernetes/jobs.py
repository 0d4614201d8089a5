"""An order as an Indexed Job with its Secret and its Service, any pod of which can be given back."""

from __future__ import annotations

from collections.abc import Collection

from fluxburst.errors import ProviderError, ProviderUnavailable
from fluxburst.model import Order, PoolSpec, RequestId, Shrink
from fluxburst.provider import ProviderContext
from fluxburst_kubernetes import objects
from fluxburst_kubernetes.cluster import Cluster
from fluxburst_kubernetes.mirror import Mirror
from fluxburst_kubernetes.objects import Claim, Object
from fluxburst_kubernetes.options import PodOptions


class Jobs:
    """A :class:`~fluxburst_kubernetes.provider.Workload`."""

    shrink = Shrink.ANY
    in_blocks = False
    boots = True
    needed = (
        ("batch", "jobs", ("get", "list", "watch", "create", "delete")),
        ("", "pods", ("list", "watch", "deletecollection")),
        ("", "secrets", ("create",)),
        ("", "services", ("create",)),
        ("", "events", ("list", "watch")),
    )

    def __init__(self, context: ProviderContext, namespace: str, cluster: Cluster) -> None:
        self._provider = context.name
        self._cluster = cluster
        self._core = f"/api/v1/namespaces/{namespace}"
        self._path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        mine = objects.selector(context.cluster, context.name)
        self._mirror = Mirror(cluster, self._path, labelSelector=mine)
        self._pods = Mirror(cluster, f"{self._core}/pods", labelSelector=mine)

    def place(self, order: Order, pool: PoolSpec, options: PodOptions) -> None:
        """The Job comes first, as it owns the others; its pods wait the moment that these take.

        Where one of the others is refused, the Job goes again.
        """
        where, name = f"provider {self._provider}", objects.name_of(order.request_id)
        made = self._cluster.ensure(self._path, objects.job(order, pool, options, self._provider))
        owner = made or self._cluster.get(f"{self._path}/{name}")
        if objects.is_going(owner):
            raise ProviderUnavailable(f"{where}: Job {name} is being deleted")
        self._mirror.put(owner)
        try:
            objects.require_single_tries(owner, where)
            secret = objects.secret(order, options, self._provider, owner)
            self._cluster.ensure(f"{self._core}/secrets", secret, private=True)
            self._cluster.ensure(f"{self._core}/services", objects.service(order, options, self._provider, owner))
        except ProviderUnavailable:
            raise
        except ProviderError:
            # a clear no, unless the Job is from before, with all that it needs
            if made is not None:
                self.withdraw(order.request_id)
            raise

    def claims(self) -> list[Claim]:
        return [claim for job in self._mirror.objects() if (claim := objects.claim_of(job))]

    def pods(self) -> list[Object]:
        return self._pods.objects()

    def sweep(self, alive: Collection[RequestId]) -> None:
        """Nobody gives the nodes of a Job back that ended one by one, or by themselves."""
        for job in self._mirror.objects():
            request_id = RequestId(job["metadata"]["labels"][objects.ORDER])
            if objects.has_ended(job) and request_id not in alive and not objects.is_going(job):
                self.withdraw(request_id)

    def withdraw(self, request_id: RequestId) -> None:
        """Its pods, its Secret and its Service go with the Job; pods that it has left behind go, too."""
        path = f"{self._path}/{objects.name_of(request_id)}"
        deleted = self._cluster.delete(path, propagationPolicy="Foreground")
        if deleted is None:
            self._cluster.delete(f"{self._core}/pods", labelSelector=f"{objects.ORDER}={request_id}")
        elif deleted["kind"] == "Job":
            self._mirror.put(deleted)

    def cut(self, request_id: RequestId, given: Collection[int], left: Collection[int]) -> None:
        """The Job makes no other pod for one that was deleted: it may fail no index more than once."""
        some = ",".join(map(str, sorted(given)))
        these = f"{objects.ORDER}={request_id},{objects.INDEX} in ({some})"
        self._cluster.delete(f"{self._core}/pods", labelSelector=these)

    def try_out(self, order: Order, pool: PoolSpec, options: PodOptions) -> None:
        made = self._cluster.ensure(self._path, objects.job(order, pool, options, self._provider), dryRun="All")
        if made is not None:
            objects.require_single_tries(made, f"provider {self._provider}")

    def close(self) -> None:
        self._mirror.close()
        self._pods.close()
