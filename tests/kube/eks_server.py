"""AWS for the tests of EKS: moto's server, and in front of it what it lacks or does unlike AWS.

Added or changed here, and nowhere else:

- **Clusters** have the endpoint and the certificate authority of the tests' own control plane.
- **Node groups take time**: CREATING until :attr:`EksServer.creation_s` is over, UPDATING until a new largest size is
  theirs after :attr:`EksServer.update_s`, DELETING until their machines are gone. moto's are there, and gone, at once.
- **ClientToken is idempotent**: the same token again gives the node group that it made; moto refuses it as existing.
- **An auto scaling group stands behind each node group**, with a size, machines, activities, scale-in protection and
  suspended processes. It starts and ends machines in the background, chooses at random who goes when it is made
  smaller, and tries again when it found none. Only machines InService are protected, and none is ended below the
  smallest size. Behind moto's node groups there is nothing.
- **Machines are nodes** of the control plane: the test kubelet registers each with its providerID, labels and taints,
  :attr:`EksServer.boot_s` after its start, and removes it with the machine.
- **Sold out**: more machines than :attr:`EksServer.capacity` are refused with :attr:`EksServer.refusal`, as a failed
  activity.
- **Prices**: GetProducts of the Pricing API, which moto has not, and spot prices, which with moto are all the same.
- **Quotas**: GetServiceQuota for EC2, which moto has not.
- **Faults**: :meth:`EksServer.fail` lets one operation fail, before or after it did what it was asked.
- **Tokens**: :meth:`EksServer.judge` checks a bearer token's signature as STS does; moto cannot be asked by it.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import itertools
import json
import random
import re
import threading
import time
from base64 import b64encode, urlsafe_b64decode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, quote, urlsplit
from xml.sax.saxutils import escape

import boto3
from moto.moto_api._internal import moto_api_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from tests.kube.kubelet import FakeNode, Kubelet

REGION = "us-east-1"
ACCESS_KEY, SECRET_KEY = "testing", "only-for-tests"
ROLE = "arn:aws:iam::123456789012:role/nodes"
USER, GROUP = "eks-service", "fluxburst"
EFFECTS = {"NO_SCHEDULE": "NoSchedule", "NO_EXECUTE": "NoExecute", "PREFER_NO_SCHEDULE": "PreferNoSchedule"}
SOLD_OUT = (
    "Could not launch On-Demand Instances. InsufficientInstanceCapacity - We currently do not have sufficient "
    "m5.xlarge capacity in the Availability Zone you requested (us-east-1a). Launching EC2 instance failed."
)
NUMBERS = itertools.count(1)
"""Of machines and groups, never the same for two tests: a pod may outlive the one that bound it."""
TRIED_AGAIN_S = 1.0
"""Between two tries of an auto scaling group that found no machine. AWS takes minutes."""

Environ = dict[str, Any]
Start = Callable[..., Any]


@dataclass
class Machine:
    id: str
    node: str
    state: str = "Pending"
    protected: bool = False


@dataclass
class NodeGroup:
    """A node group and the auto scaling group behind it."""

    told: dict[str, Any]
    """What moto says of it."""
    token: str
    scaling_group: str
    desired: int
    most: int
    status: str = "CREATING"
    ready_at: float = 0.0
    most_later: int = 0
    machines: list[Machine] = field(default_factory=list)
    activities: list[dict[str, str]] = field(default_factory=list)
    suspended: set[str] = field(default_factory=set)
    next_try_at: float = 0.0
    issues: list[dict[str, Any]] = field(default_factory=list)

    @property
    def alive(self) -> list[Machine]:
        return [machine for machine in self.machines if machine.state != "Terminating"]


@dataclass
class Fault:
    service: str
    operation: str
    code: str
    message: str
    status: int
    headers: Mapping[str, str]
    afterwards: bool


class EksServer:
    """All of AWS at :attr:`url`, on loopback.

    Args:
        cluster: The EKS cluster's name.
        endpoint: Its API server's address.
        ca: The file with that one's authority.
        kubelet: Whose fake nodes the machines become; without it they are machines only.
        cores: What each node has to give to pods.
    """

    def __init__(
        self, cluster: str, endpoint: str, ca: Path | None, kubelet: Kubelet | None = None, cores: int = 4
    ) -> None:
        self.cluster = cluster
        self.creation_s = 0.0
        self.update_s = 0.0
        self.boot_s = 0.0
        self.ending_s = 0.0
        self.capacity: int | None = None
        self.refusal = SOLD_OUT
        self.prices: dict[str, float] = {}
        self.spot_prices: dict[str, dict[str, float]] = {}
        self.quotas: dict[str, float] = {}
        self.cluster_status = "ACTIVE"
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        """Service, operation, and what can be read of its arguments."""
        self.groups: dict[str, NodeGroup] = {}
        self.history: list[tuple[float, str, int, int]] = []
        """When (monotonic) the size of which node group changed: wanted, and machines there."""
        self.revoked: set[str] = set()
        self.tokens: list[str] = []
        self._endpoint = endpoint
        self._ca = b64encode(ca.read_bytes()).decode() if ca else ""
        self._kubelet = kubelet
        self._cores = cores
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._changed = threading.Event()
        self._ending = False
        moto_api_backend.reset()
        self._moto = _moto()
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=_Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.05,), name="eks-server", daemon=True),
            threading.Thread(target=self._scale, name="eks-machines", daemon=True),
        ]

    def __enter__(self) -> EksServer:
        for thread in self._threads:
            thread.start()
        subnets = self.client("ec2").describe_subnets()["Subnets"]
        self.subnets = sorted(subnet["SubnetId"] for subnet in subnets)[:2]
        self.client("iam").create_role(RoleName="nodes", AssumeRolePolicyDocument="{}")
        self.client("eks").create_cluster(
            name=self.cluster, roleArn=ROLE, resourcesVpcConfig={"subnetIds": self.subnets}
        )
        self.calls.clear()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._ending:
            return
        self._ending = True
        self._changed.set()
        self._server.shutdown()
        for thread in self._threads:
            thread.join()
        self._server.server_close()

    def client(self, service: str) -> Any:
        """An administrator's own way to it."""
        return _session().client(
            service,
            REGION,
            endpoint_url=self.url,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )

    def fail(
        self,
        service: str,
        operation: str,
        code: str,
        message: str = "as the test asks",
        *,
        status: int = 400,
        headers: Mapping[str, str] | None = None,
        afterwards: bool = False,
    ) -> None:
        """Let the next such operation fail; ``afterwards``: when it has been done."""
        self._faults.append(Fault(service, operation, code, message, status, headers or {}, afterwards))

    def asked(self, operation: str) -> list[dict[str, Any]]:
        """The arguments of all calls of that name so far."""
        return [arguments for _, name, arguments in self.calls if name == operation]

    def interrupt(self, machine: Machine) -> None:
        """A machine ends by itself, such as a spot instance; its auto scaling group starts another."""
        with self._lock:
            machine.state = "Terminating"
        self._changed.set()

    def judge(self, token: str) -> tuple[str, list[str]] | None:
        """Whose a token is, if STS would answer the URL that it is, and EKS take it."""
        if not token.startswith("k8s-aws-v1."):
            return None
        encoded = token.removeprefix("k8s-aws-v1.")
        url = urlsplit(urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode())
        query = dict(parse_qsl(url.query))
        signature = query.pop("X-Amz-Signature", "")
        headers = {"host": url.netloc, "x-k8s-aws-id": self.cluster}
        signed_at = datetime.datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
        age = datetime.datetime.now(datetime.UTC) - signed_at
        if token not in self.tokens:
            self.tokens.append(token)
        fits = query["X-Amz-SignedHeaders"] == ";".join(sorted(headers)) and query["Action"] == "GetCallerIdentity"
        if not fits or age > datetime.timedelta(minutes=15) or token in self.revoked:
            return None
        return (USER, [GROUP]) if hmac.compare_digest(signature, _signature(url.path, query, headers)) else None

    # Requests

    def _serve(self, environ: Environ, start: Start) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = BytesIO(body)
        service = environ.get("HTTP_AUTHORIZATION", "///moto/").split("/")[3]
        operation, arguments = _read(service, environ, body)
        self.calls.append((service, operation, arguments))
        fault = next((one for one in self._faults if (one.service, one.operation) == (service, operation)), None)
        if fault is not None:
            self._faults.remove(fault)
            if fault.afterwards:
                self._answer(service, operation, arguments, environ, lambda *_: None)
            return _refuse(service, fault.code, fault.message, fault.status, start, fault.headers)
        return self._answer(service, operation, arguments, environ, start)

    def _answer(
        self, service: str, operation: str, arguments: dict[str, Any], environ: Environ, start: Start
    ) -> Iterable[bytes]:
        with self._lock:
            if service == "autoscaling":
                return self._scaling(operation, arguments, start)
            if service == "eks":
                return self._eks(operation, arguments, environ, start)
            if service == "pricing":
                return _json({"FormatVersion": "aws_v1", "PriceList": self._price_list(arguments)}, start)
            if service == "servicequotas":
                code = arguments["QuotaCode"]
                if code not in self.quotas:
                    return _refuse(service, "NoSuchResourceException", code, 400, start)
                return _json({"Quota": {"QuotaCode": code, "Value": self.quotas[code]}}, start)
            if operation == "DescribeSpotPriceHistory":
                return _xml(
                    "DescribeSpotPriceHistoryResponse", {"spotPriceHistorySet": self._spot(arguments)}, start, "item"
                )
        return self._moto(environ, start)

    def _eks(self, operation: str, arguments: dict[str, Any], environ: Environ, start: Start) -> Iterable[bytes]:
        name = arguments.get("nodegroupName", "")
        group = self.groups.get(name)
        if operation == "DescribeNodegroup" and group is not None:
            return _json({"nodegroup": self._told(group)}, start)
        if operation == "CreateNodegroup" and group is not None and arguments["clientRequestToken"] == group.token:
            return _json({"nodegroup": self._told(group)}, start)
        if group is not None and operation in ("CreateNodegroup", "DeleteNodegroup") and group.status == "DELETING":
            return _refuse("eks", "ResourceInUseException", f"{name} is being deleted", 409, start)
        if group is not None and operation == "UpdateNodegroupConfig" and group.status not in ("ACTIVE", "DEGRADED"):
            return _refuse("eks", "ResourceInUseException", f"Nodegroup {name} is {group.status}", 409, start)
        if operation == "CreateNodegroup" and self.cluster_status != "ACTIVE":
            told = f"Cluster is not in an ACTIVE state, it is {self.cluster_status}"
            return _refuse("eks", "InvalidRequestException", told, 400, start)
        head: list[Any] = []
        data = b"".join(self._moto(environ, lambda *told: head.extend(told)))
        if not head[0].startswith("200"):
            start(*head)
            return [data]
        answer = json.loads(data)
        if operation == "DescribeCluster":
            answer["cluster"] |= {"endpoint": self._endpoint, "status": self.cluster_status}
            answer["cluster"]["certificateAuthority"] = {"data": self._ca}
        elif operation == "CreateNodegroup":
            sizes = arguments["scalingConfig"]
            group = self.groups[name] = NodeGroup(
                answer["nodegroup"],
                arguments["clientRequestToken"],
                f"eks-{name}-{next(NUMBERS):06d}",
                sizes["desiredSize"],
                sizes["maxSize"],
                ready_at=time.monotonic() + self.creation_s,
            )
            self._note(group)
            answer = {"nodegroup": self._told(group)}
        elif operation == "UpdateNodegroupConfig":
            assert group is not None
            group.status, group.most_later = "UPDATING", arguments["scalingConfig"]["maxSize"]
            group.ready_at = time.monotonic() + self.update_s
        elif operation == "DeleteNodegroup":
            assert group is not None
            group.status, group.desired = "DELETING", 0
            self._note(group)
        self._changed.set()
        return _json(answer, start)

    def _told(self, group: NodeGroup) -> dict[str, Any]:
        told = {**group.told, "status": group.status, "health": {"issues": group.issues}}
        told["scalingConfig"] = {"minSize": 0, "maxSize": group.most, "desiredSize": group.desired}
        is_there = group.status != "CREATING" or not self.creation_s
        told["resources"] = {"autoScalingGroups": [{"name": group.scaling_group}] if is_there else []}
        return told

    def _scaling(self, operation: str, arguments: dict[str, Any], start: Start) -> Iterable[bytes]:
        by_name = {group.scaling_group: group for group in self.groups.values()}
        if operation == "DescribeAutoScalingGroups":
            wanted = [value for key, value in arguments.items() if key.startswith("AutoScalingGroupNames.member.")]
            wanted = wanted or list(by_name)[: int(arguments.get("MaxRecords", 50))]
            found = [_scaling_group(by_name[name]) for name in wanted if name in by_name]
            return _xml(operation, {"AutoScalingGroups": found}, start)
        if operation == "DescribeScalingActivities" and "AutoScalingGroupName" not in arguments:
            told_of = [activity for group in by_name.values() for activity in reversed(group.activities)]
            return _xml(operation, {"Activities": told_of[: int(arguments.get("MaxRecords", 100))]}, start)
        group = by_name.get(arguments["AutoScalingGroupName"])
        if group is None:
            told = f"AutoScalingGroup name not found - null: {arguments['AutoScalingGroupName']}"
            return _refuse("autoscaling", "ValidationError", told, 400, start)
        ids = {value for key, value in arguments.items() if key.startswith("InstanceIds.member.")}
        chosen = [machine for machine in group.alive if machine.id in ids]
        answer: dict[str, Any] = {}
        if operation == "DescribeScalingActivities":
            answer = {"Activities": list(reversed(group.activities))}
        elif operation == "SetDesiredCapacity":
            size = int(arguments["DesiredCapacity"])
            if size > group.most:
                told = f"New SetDesiredCapacity value {size} is above max value {group.most} for the AutoScalingGroup."
                return _refuse("autoscaling", "ValidationError", told, 400, start)
            group.desired, group.next_try_at = size, 0.0
            self._note(group)
        elif operation == "TerminateInstanceInAutoScalingGroup":
            if len(chosen) < len(ids):
                told = "Instance Id not found - No managed instance found"
                return _refuse("autoscaling", "ValidationError", told, 400, start)
            smaller = arguments["ShouldDecrementDesiredCapacity"] == "true"
            if smaller and group.desired < len(chosen):
                told = "Terminating instance without replacement will violate group's min size constraint."
                return _refuse("autoscaling", "ValidationError", told, 400, start)
            for machine in chosen:
                machine.state = "Terminating"
                group.desired -= smaller
            self._note(group)
        elif operation == "SetInstanceProtection":
            unfit = ids - {machine.id for machine in chosen if machine.state == "InService"}
            if unfit:
                told = f"The instance {min(unfit)} is not part of Auto Scaling group, or is not in InService."
                return _refuse("autoscaling", "ValidationError", told, 400, start)
            for machine in chosen:
                machine.protected = arguments["ProtectedFromScaleIn"] == "true"
        elif operation == "SuspendProcesses":
            group.suspended |= {value for key, value in arguments.items() if key.startswith("ScalingProcesses.member.")}
        else:
            return _refuse("autoscaling", "InvalidAction", operation, 400, start)
        self._changed.set()
        return _xml(operation, answer, start)

    def _price_list(self, arguments: dict[str, Any]) -> list[str]:
        wanted = {one["Field"]: one["Value"] for one in arguments["Filters"]}
        assert wanted["regionCode"] == REGION
        if wanted["instanceType"] not in self.prices:
            return []
        usd = f"{self.prices[wanted['instanceType']]:.10f}"
        dimension = {"unit": "Hrs", "pricePerUnit": {"USD": usd}, "description": f"${usd} per On Demand Linux"}
        terms = {"OnDemand": {"SKU.TERM": {"priceDimensions": {"SKU.TERM.RATE": dimension}}}}
        return [json.dumps({"product": {"attributes": wanted}, "terms": terms})]

    def _spot(self, arguments: dict[str, Any]) -> list[dict[str, str]]:
        kinds = [value for key, value in arguments.items() if key.startswith("InstanceType.")]
        zones = [value for key, value in arguments.items() if key.startswith("Filter.1.Value.")]
        return [
            {"instanceType": kind, "availabilityZone": zone, "spotPrice": str(usd)}
            for kind in kinds
            for zone, usd in self.spot_prices.get(kind, {}).items()
            if not zones or zone in zones
        ]

    # Machines

    def _scale(self) -> None:
        """Bring all node groups to what they should be, after each change and while something is under way."""
        while not self._ending:
            self._changed.wait(0.1 if self._is_under_way() else None)
            self._changed.clear()
            with self._lock:
                groups = list(self.groups.items())
            for name, group in groups:
                self._settle(name, group)

    def _is_under_way(self) -> bool:
        with self._lock:
            return any(
                group.status in ("CREATING", "UPDATING", "DELETING") or len(group.machines) != group.desired
                for group in self.groups.values()
            )

    def _settle(self, name: str, group: NodeGroup) -> None:
        with self._lock:
            if group.status in ("CREATING", "UPDATING") and time.monotonic() >= group.ready_at:
                group.status, group.most = "ACTIVE", group.most_later or group.most
            if group.status == "CREATE_FAILED":
                return
            started = self._start_machines(group)
            surplus = len(group.alive) - group.desired
            # it chooses as it likes
            free = [machine for machine in group.alive if not machine.protected]
            for machine in random.sample(free, min(max(surplus, 0), len(free))):
                machine.state = "Terminating"
            ending = [machine for machine in group.machines if machine.state == "Terminating"]
        if started:
            self._boot(group, started)
        if ending:
            if self.ending_s:
                threading.Event().wait(self.ending_s)
            for machine in ending:
                if self._kubelet is not None:
                    self._kubelet.remove(machine.node)
            with self._lock:
                group.machines = [machine for machine in group.machines if machine not in ending]
                self._note(group)
        with self._lock:
            if group.status == "DELETING" and not group.machines:
                del self.groups[name]

    def _start_machines(self, group: NodeGroup) -> list[Machine]:
        started = []
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if time.monotonic() < group.next_try_at:
            return []
        for _ in range(group.desired - len(group.alive)):
            number = next(NUMBERS)
            activity = {
                "ActivityId": f"activity-{number}",
                "AutoScalingGroupName": group.scaling_group,
                "Description": f"Launching a new EC2 instance: i-{number:017x}",
                "Cause": "an instance was started in response to a difference between desired and actual capacity",
                "StartTime": now,
                "StatusCode": "Successful",
                "Progress": "100",
            }
            group.activities.append(activity)
            if self.capacity is not None and sum(len(one.alive) for one in self.groups.values()) >= self.capacity:
                activity |= {"StatusCode": "Failed", "StatusMessage": self.refusal}
                group.next_try_at = time.monotonic() + TRIED_AGAIN_S
                continue
            machine = Machine(f"i-{number:017x}", f"ip-10-0-0-{number}.ec2.internal")
            group.machines.append(machine)
            started.append(machine)
        return started

    def _boot(self, group: NodeGroup, machines: list[Machine]) -> None:
        if self.boot_s:
            threading.Event().wait(self.boot_s)
        if self._kubelet is not None:
            taints = tuple({**taint, "effect": EFFECTS[taint["effect"]]} for taint in group.told.get("taints") or ())
            self._kubelet.register(
                *(
                    FakeNode(
                        machine.node,
                        cores=self._cores,
                        labels={**group.told["labels"], "eks.amazonaws.com/nodegroup": group.told["nodegroupName"]},
                        taints=taints,
                        provider_id=f"aws:///us-east-1a/{machine.id}",
                    )
                    for machine in machines
                )
            )
        with self._lock:
            for machine in machines:
                if machine.state == "Pending":
                    machine.state = "InService"
            self._note(group)

    def _note(self, group: NodeGroup) -> None:
        self.history.append((time.monotonic(), group.told["nodegroupName"], group.desired, len(group.machines)))


@cache
def _moto() -> DomainDispatcherApplication:
    """Made once, as that takes a second; what it holds is not its own, and is reset."""
    return DomainDispatcherApplication(create_backend_app)


@cache
def _session() -> boto3.session.Session:
    """Made once: it keeps the models of the services that it has read."""
    return boto3.session.Session()


class _Quiet(MotoRequestHandler):
    def log(self, *_: Any) -> None:
        """Nothing: the calls are kept."""


def _read(service: str, environ: Environ, body: bytes) -> tuple[str, dict[str, Any]]:
    """What a request asks for, by the protocol of its service."""
    if target := environ.get("HTTP_X_AMZ_TARGET"):
        return target.rpartition(".")[2], json.loads(body or b"{}")
    if service == "eks":
        arguments = json.loads(body or b"{}")
        found = re.fullmatch(
            r"/clusters(?:/([^/]+))?(/node-groups)?(?:/([^/]+))?(/update-config)?", environ["PATH_INFO"]
        )
        if not found:
            return environ["PATH_INFO"], arguments
        cluster, groups, name, update = found.groups()
        verb = {"GET": "Describe", "POST": "Create", "DELETE": "Delete"}[environ["REQUEST_METHOD"]]
        if update:
            verb = "Update"
        elif verb == "Describe" and not (name if groups else cluster):
            verb = "List"
        if groups:
            arguments |= {"clusterName": cluster, **({"nodegroupName": name} if name else {})}
            kind = "Nodegroups" if verb == "List" else "NodegroupConfig" if update else "Nodegroup"
        else:
            kind = "Cluster"
        return verb + kind, arguments
    arguments = {key: values[0] for key, values in parse_qs(body.decode(errors="replace")).items()}
    return arguments.pop("Action", ""), arguments


def _json(answer: Any, start: Start) -> Iterable[bytes]:
    start("200 OK", [("Content-Type", "application/x-amz-json-1.1")])
    return [json.dumps(answer, default=str).encode()]


def _refuse(
    service: str, code: str, message: str, status: int, start: Start, headers: Mapping[str, str] | None = None
) -> Iterable[bytes]:
    if service == "ec2":
        error = f"<Errors><Error><Code>{code}</Code><Message>{escape(message)}</Message></Error></Errors>"
        body = f"<Response>{error}<RequestID>1</RequestID></Response>".encode()
    elif service in ("autoscaling", "sts", "iam"):
        error = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
        body = f"<ErrorResponse>{error}<RequestId>1</RequestId></ErrorResponse>".encode()
    else:
        body = json.dumps({"__type": code, "message": message}).encode()
    start(f"{status} refused", [("Content-Type", "text/xml"), ("x-amzn-ErrorType", code), *(headers or {}).items()])
    return [body]


def _xml(operation: str, answer: Mapping[str, Any], start: Start, item: str = "member") -> Iterable[bytes]:
    def write(value: Any) -> str:
        if isinstance(value, Mapping):
            return "".join(f"<{key}>{write(content)}</{key}>" for key, content in value.items())
        if isinstance(value, list):
            return "".join(f"<{item}>{write(content)}</{item}>" for content in value)
        return escape(str(value).lower() if isinstance(value, bool) else str(value))

    start("200 OK", [("Content-Type", "text/xml")])
    if item == "item":
        return [f"<{operation}>{write(answer)}</{operation}>".encode()]
    return [
        f"<{operation}Response><{operation}Result>{write(answer)}</{operation}Result></{operation}Response>".encode()
    ]


def _scaling_group(group: NodeGroup) -> dict[str, Any]:
    return {
        "AutoScalingGroupName": group.scaling_group,
        "MinSize": 0,
        "MaxSize": group.most,
        "DesiredCapacity": group.desired,
        "Instances": [
            {
                "InstanceId": machine.id,
                "AvailabilityZone": "us-east-1a",
                "LifecycleState": machine.state,
                "HealthStatus": "Healthy",
                "ProtectedFromScaleIn": machine.protected,
            }
            for machine in group.machines
        ],
        "SuspendedProcesses": [{"ProcessName": name, "SuspensionReason": "User suspended"} for name in group.suspended],
    }


def _signature(path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> str:
    """The signature of a URL by AWS's Signature Version 4, with the tests' key."""
    names = ";".join(sorted(headers))
    canonical = "\n".join(
        [
            "GET",
            path or "/",
            "&".join(f"{quote(key, safe='-_.~')}={quote(query[key], safe='-_.~')}" for key in sorted(query)),
            *(f"{key}:{headers[key]}" for key in sorted(headers)),
            "",
            names,
            hashlib.sha256(b"").hexdigest(),
        ]
    )
    scope = query["X-Amz-Credential"].split("/", 1)[1]
    hashed = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = "\n".join(["AWS4-HMAC-SHA256", query["X-Amz-Date"], scope, hashed])
    key = f"AWS4{SECRET_KEY}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
