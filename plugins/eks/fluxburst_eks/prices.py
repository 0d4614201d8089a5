"""What an hour costs, where the account may ask; None is unknown, never free."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from fluxburst.errors import ProviderError
from fluxburst_eks.aws import Aws, NotFound
from fluxburst_eks.options import EksPodOptions

LISTED_S = 6 * 3600.0
SPOT_S = 3600.0
UNKNOWN_S = 900.0
"""How long a price is taken for granted, and how long its absence."""
PRICE_LIST = "us-east-1"
"""The Pricing API is in few regions, each of which has the prices of all."""


class Prices:
    """Keeps what it was told for hours. An account that may not ask has no prices, and that is no error."""

    def __init__(self, aws: Aws, clock: Callable[[], float]) -> None:
        self._aws = aws
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[tuple[Any, ...], tuple[float, float | None]] = {}

    def on_demand(self, kind: str) -> float | None:
        """Linux, shared tenancy, without discounts."""
        return self._cached((kind,), LISTED_S, lambda: self._listed(kind))

    def spot(self, options: EksPodOptions) -> float | None:
        """The highest of its types' and zones' present prices: which of them EKS takes is not ours to say."""
        key = (options.instance_types, options.subnets)
        return self._cached(key, SPOT_S, lambda: self._spot(options))

    def _cached(self, key: tuple[Any, ...], fresh_s: float, ask: Callable[[], float | None]) -> float | None:
        with self._lock:
            now = self._clock()
            until, usd = self._known.get(key, (now, None))
            if until <= now:
                try:
                    usd = ask()
                except (ProviderError, NotFound):
                    usd = None
                self._known[key] = (now + (UNKNOWN_S if usd is None else fresh_s), usd)
            return usd

    def _listed(self, kind: str) -> float | None:
        wanted = {
            "instanceType": kind,
            "regionCode": self._aws.region,
            "operatingSystem": "Linux",
            "preInstalledSw": "NA",
            "tenancy": "Shared",
            "capacitystatus": "Used",
        }
        told = self._aws.call(
            "pricing",
            "get_products",
            region=PRICE_LIST,
            ServiceCode="AmazonEC2",
            Filters=[{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()],
        )
        found = [
            float(dimension["pricePerUnit"]["USD"])
            for product in map(json.loads, told["PriceList"])
            for term in product["terms"].get("OnDemand", {}).values()
            for dimension in term["priceDimensions"].values()
            if dimension["unit"] == "Hrs" and "USD" in dimension["pricePerUnit"]
        ]
        # the list has rows at no charge for what is paid otherwise
        return max(found, default=0.0) or None

    def _spot(self, options: EksPodOptions) -> float | None:
        zones: list[str] = []
        if options.subnets:
            told = self._aws.all("ec2", "describe_subnets", "Subnets", SubnetIds=list(options.subnets))
            zones = [subnet["AvailabilityZone"] for subnet in told]
        history = self._aws.all(
            "ec2",
            "describe_spot_price_history",
            "SpotPriceHistory",
            InstanceTypes=list(options.instance_types),
            ProductDescriptions=["Linux/UNIX"],
            StartTime=datetime.now(UTC),  # the present price is the last one before that
            **({"Filters": [{"Name": "availability-zone", "Values": zones}]} if zones else {}),
        )
        return max((float(entry["SpotPrice"]) for entry in history), default=0.0) or None
