"""The provider: an order is an apply of the pool's module, with a state of its own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fluxburst.errors import InvalidOrder
from fluxburst.model import (
    BootMaterial,
    Demand,
    Finding,
    NodeId,
    NodeReport,
    Offer,
    Order,
    Refusal,
    RequestId,
    Severity,
    Shrink,
)
from fluxburst.provider import ProviderContext
from fluxburst.provider.protocol import options as read
from fluxburst_terraform import roots
from fluxburst_terraform.options import ModuleOptions, TerraformOptions
from fluxburst_terraform.orders import ROOT, Job, Orders
from fluxburst_terraform.terraform import Terraform, TerraformFailed


def build(context: ProviderContext) -> TerraformProvider:
    """Raises :class:`~fluxburst.errors.ConfigError` where a table is wrong."""
    options = read(TerraformOptions, context.options, f"provider.{context.name}")
    pools = {name: read(ModuleOptions, pool.options, f"pool.{name}.options") for name, pool in context.pools.items()}
    return TerraformProvider(context, options, pools)


class TerraformProvider:
    """Node ids are ``REQUEST_ID.HOST``."""

    shrink = Shrink.ANY

    def __init__(self, context: ProviderContext, options: TerraformOptions, pools: Mapping[str, ModuleOptions]) -> None:
        self._context = context
        self._options = options
        self._pools = pools
        self._threads = ThreadPoolExecutor(options.parallel, thread_name_prefix=f"terraform {context.name}")
        self._orders = Orders(context.state_dir / "orders", self._terraform, self._threads.submit)

    def _terraform(self, directory: Path) -> Terraform:
        return Terraform(directory, self._options.terraform, self._options.lock_timeout)

    def offers(self, demand: Demand) -> Sequence[Offer | Refusal]:
        return [
            Offer(
                pool=name,
                provider=self._context.name,
                instance_type=self._pools[name].instance_type,
                cores=pool.cores,
                gpus=pool.gpus,
                usd_per_node_hour=pool.usd_per_node_hour,
                spot=self._pools[name].spot,
                zone=self._pools[name].zone,
                region=self._pools[name].region,
                join_s=self._pools[name].join_time,
            )
            for name, pool in self._context.pools.items()
        ]

    def launch(self, order: Order, /) -> None:
        """Take the order; what Terraform makes of it is told by :meth:`list_nodes`."""
        if order.pool not in self._pools:
            raise InvalidOrder(f"[pool.{order.pool}] is not in the configuration of provider {self._context.name}")
        self._orders.add(Job(order.request_id, order.pool, order.hosts, self._root(order), order.hosts))

    def _root(self, order: Order) -> dict[str, object]:
        options = self._pools[order.pool]
        script, expires = roots.boot_script(order, options), roots.expires_at(order, options)
        return roots.root(order.request_id, order.cluster, order.hosts, script, expires, options, self._options.backend)

    def list_nodes(self) -> Sequence[NodeReport]:
        return [report for job in self._orders.all() for report in job.reports()]

    def release(self, node_ids: Collection[NodeId], /) -> None:
        self._orders.give_back(node_ids)

    def close(self) -> None:
        """What Terraform has begun, it ends; what has not begun is begun by the next process."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def check(self) -> Sequence[Finding]:
        try:
            version = self._terraform(self._context.state_dir).version()
        except TerraformFailed as error:
            fix = f"install Terraform, or name it by [provider.{self._context.name}] terraform"
            return [Finding("terraform", Severity.ERROR, str(error), fix)]
        return [Finding("terraform", Severity.OK, f"Terraform {version}"), *map(self._check_pool, self._pools)]

    def _check_pool(self, name: str) -> Finding:
        """An order of one node, validated without a state."""
        pool, subject = self._context.pools[name], f"pool {name}"
        offer = Offer(name, self._context.name, self._pools[name].instance_type, pool.cores)
        boot = BootMaterial("[bootstrap]\n", "")
        request_id = RequestId("b-check")
        order = Order(request_id, self._context.cluster, name, pool.hosts[:1], offer, boot, created_at=0.0)
        with tempfile.TemporaryDirectory(prefix="fluxburst-check-") as directory:
            root = {key: value for key, value in self._root(order).items() if key != "terraform"}
            (Path(directory) / ROOT).write_text(json.dumps(root), encoding="utf-8")
            terraform = self._terraform(Path(directory))
            try:
                terraform.init()
                terraform.validate()
            except TerraformFailed as error:
                fix = f"mend [pool.{name}.options] module and variables, or the module"
                return Finding(subject, Severity.ERROR, str(error), fix)
        return Finding(subject, Severity.OK, f"module {self._pools[name].module} is valid with what it is given")
