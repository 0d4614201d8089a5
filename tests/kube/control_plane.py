"""A real Kubernetes control plane on loopback, while the tests run: etcd, API server, controllers, scheduler."""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import json
import os
import re
import secrets
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

BINARIES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
PINS = Path(__file__).parent / "assets" / "go.mod"
ADMIN = "admin"
PATIENCE_S = 60.0
"""How long a start may take on a machine that others use too."""
LOOK_AGAIN_S = 0.02
VALID = datetime.timedelta(days=1)

# Who started it may have ended before it was bound to that.
IF_STILL_BOUND = 'test "$PPID" = "$0" && exec "$@"'

AUDIT_POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  nonResourceURLs: ["/readyz"]
- level: None
  userGroups: ["system:nodes"]
- level: None
  users: ["system:apiserver", "system:kube-controller-manager", "system:kube-scheduler"]
- level: None
  userGroups: ["system:serviceaccounts:kube-system"]
- level: Metadata
"""


def find_assets() -> Path | None:
    """Where the binaries are: KUBEBUILDER_ASSETS, else where `make kube-assets` puts them."""
    named = os.environ.get("KUBEBUILDER_ASSETS")
    if named:
        directory = Path(named)
    else:
        version = re.search(r"k8s\.io/kubernetes (v\S+)", PINS.read_text())
        assert version is not None
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        directory = cache / "fluxburst" / "kube-assets" / version[1]
    return directory if all((directory / binary).is_file() for binary in BINARIES) else None


@dataclass(frozen=True)
class Request:
    """A request that the API server has answered, or a watch that it has begun."""

    verb: str
    uri: str
    user: str
    agent: str
    code: int


class ControlPlane:
    """One cluster's control plane, with RBAC and admission as they come; nodes and pods are the `Kubelet`'s.

    Nodes send no heartbeats: the node lifecycle controller takes them for alive for a day, and acts within a second on
    a Ready condition that is reported otherwise. Pods are evicted from unreachable nodes after two seconds.

    Its processes end with the thread that started them, however that ends. What it stores is lost with it.

    Args:
        assets: The directory of its binaries.
        directory: Where it keeps everything. It must be there, and is left to the caller to remove.
        token_webhook: Who is asked about bearer tokens that it does not know, each time.
    """

    def __init__(self, assets: Path, directory: Path, token_webhook: str = "") -> None:
        self._assets = assets
        self._token_webhook = token_webhook
        self._directory = directory
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._etcd_port, self.port = _free_ports(2)
        self._tokens: dict[str, tuple[str, str]] = {}
        self.url = f"https://127.0.0.1:{self.port}"
        self.ca = directory / "ca.crt"
        self.server_certificate = (directory / "server.crt", directory / "server.key")
        self.kubeconfig = directory / f"{ADMIN}.kubeconfig"

    def __enter__(self) -> ControlPlane:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything, and return when the API server is ready."""
        _make_certificates(self._directory)
        for user, group in (
            (ADMIN, "system:masters"),
            ("kubelet", "system:masters,system:nodes"),
            ("system:kube-controller-manager", ""),
            ("system:kube-scheduler", ""),
        ):
            self._tokens[user] = (secrets.token_urlsafe(), group)
        users = "".join(f'{token},{user},{user},"{group}"\n' for user, (token, group) in self._tokens.items())
        (self._directory / "tokens.csv").write_text(users)
        (self._directory / "audit-policy.yaml").write_text(AUDIT_POLICY)
        self.write_kubeconfig(self.kubeconfig, self._tokens[ADMIN][0])
        self._start_etcd()
        self._start_on_etcd()

    def stop(self) -> None:
        """End everything at once."""
        self._end(*reversed(self._processes))

    def pause(self, *, hang: bool = False) -> None:
        """Take the API server away, from one thread, until `resume`.

        Args:
            hang: Let it accept connections and never answer, instead of refusing them.
        """
        if hang:
            process = self._processes["kube-apiserver"]
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)  # a thread that runs meanwhile may still answer
        else:
            # The controllers would ask ever less often, and be half a minute late after it is back.
            self._end("kube-scheduler", "kube-controller-manager", "kube-apiserver")

    def resume(self) -> None:
        """Bring the API server back at its old address, and return when it is ready."""
        if process := self._processes.get("kube-apiserver"):
            process.send_signal(signal.SIGCONT)
            self._await_ready()
        else:
            self._start_on_etcd()

    def kubeconfig_of(self, user: str) -> Path:
        """The kubeconfig of one of the control plane's own users, such as ``kubelet``."""
        path = self._directory / f"{user}.kubeconfig"
        if not path.exists():
            self.write_kubeconfig(path, self._tokens[user][0])
        return path

    def write_kubeconfig(self, path: Path, token: str, *, context: str = "test", namespace: str = "default") -> None:
        """Write a kubeconfig for whoever has that token, such as a service account."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": context, "cluster": {"server": self.url, "certificate-authority": str(self.ca)}}],
            "users": [{"name": context, "user": {"token": token}}],
            "contexts": [
                {"name": context, "context": {"cluster": context, "user": context, "namespace": namespace}},
            ],
            "current-context": context,
        }
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(content))

    def requests(self, *, user: str = "", agent: str = "") -> list[Request]:
        """What was asked of the API server since its start, but by the control plane and the nodes.

        The last request is there a moment after its answer.

        Args:
            user: Only those of this user.
            agent: Only those whose user agent has this in it.
        """
        path = self._directory / "audit.log"
        found = []
        # A line that is being written has no end yet.
        for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
            if not line.endswith("\n"):
                continue
            entry = json.loads(line)
            request = Request(
                verb=entry["verb"],
                uri=entry["requestURI"],
                user=entry["user"].get("username", ""),  # refused credentials are nobody's
                agent=entry.get("userAgent", ""),
                code=entry.get("responseStatus", {}).get("code", 0),
            )
            watching = entry["verb"] == "watch" and entry["stage"] == "ResponseComplete" and request.code == 200
            if not watching and (not user or user == request.user) and agent in request.agent:
                found.append(request)
        return found

    def log(self, name: str) -> str:
        """What one of the processes has written."""
        return (self._directory / f"{name}.log").read_text(errors="replace")

    def resident_mb(self) -> dict[str, float]:
        """The resident memory of each process."""
        found = {}
        for name, process in self._processes.items():
            status = Path(f"/proc/{process.pid}/status").read_text()
            kilobytes = re.search(r"VmRSS:\s+(\d+)", status)
            found[name] = int(kilobytes[1]) / 1000 if kilobytes else 0.0
        return found

    def _end(self, *names: str) -> None:
        processes = [self._processes.pop(name) for name in names]
        for process in processes:
            process.kill()  # what is stopped by SIGSTOP ends by this, too
        for process in processes:
            process.wait()

    def _start_on_etcd(self) -> None:
        self._start_api_server()
        self._await_ready()
        self._start_controllers()
        self._start_scheduler()

    def _start_etcd(self) -> None:
        address = f"http://127.0.0.1:{self._etcd_port}"
        self._run(
            "etcd",
            f"--data-dir={self._directory / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls={address}",
            f"--advertise-client-urls={address}",
            "--listen-peer-urls=http://127.0.0.1:0",
            "--log-level=warn",
        )

    def _start_api_server(self) -> None:
        webhook = []
        if self._token_webhook:
            path = self._directory / "token-webhook.kubeconfig"
            cluster = {"name": "webhook", "cluster": {"server": self._token_webhook}}
            context = {"name": "webhook", "context": {"cluster": "webhook", "user": ""}}
            content = {"clusters": [cluster], "contexts": [context], "current-context": "webhook"}
            path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **content}))
            webhook = [
                f"--authentication-token-webhook-config-file={path}",
                "--authentication-token-webhook-version=v1",
                "--authentication-token-webhook-cache-ttl=0s",
            ]
        self._run(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            # An endpoint on loopback would be refused: the Service "kubernetes" has none.
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--tls-cert-file={self.server_certificate[0]}",
            f"--tls-private-key-file={self.server_certificate[1]}",
            f"--token-auth-file={self._directory / 'tokens.csv'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={self._directory / 'accounts.key'}",
            f"--service-account-key-file={self._directory / 'accounts.key'}",
            "--authorization-mode=RBAC",
            "--allow-privileged",
            "--default-not-ready-toleration-seconds=2",
            "--default-unreachable-toleration-seconds=2",
            f"--audit-policy-file={self._directory / 'audit-policy.yaml'}",
            f"--audit-log-path={self._directory / 'audit.log'}",
            *webhook,
        )

    def _start_controllers(self) -> None:
        self._run(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig_of('system:kube-controller-manager')}",
            "--leader-elect=false",
            "--secure-port=0",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={self._directory / 'accounts.key'}",
            f"--root-ca-file={self.ca}",
            "--kube-api-qps=1000",
            "--kube-api-burst=1000",
            "--node-monitor-period=1s",
            "--node-monitor-grace-period=24h",
            "--node-eviction-rate=100",
            "--secondary-node-eviction-rate=100",
        )

    def _start_scheduler(self) -> None:
        (self._directory / "scheduler.yaml").write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "kubescheduler.config.k8s.io/v1",
                    "kind": "KubeSchedulerConfiguration",
                    "clientConnection": {
                        "kubeconfig": str(self.kubeconfig_of("system:kube-scheduler")),
                        "qps": 1000,
                        "burst": 1000,
                    },
                    "leaderElection": {"leaderElect": False},
                    "podMaxBackoffSeconds": 1,
                }
            )
        )
        self._run("kube-scheduler", f"--config={self._directory / 'scheduler.yaml'}", "--secure-port=0")

    def _run(self, name: str, *arguments: str) -> None:
        with (self._directory / f"{name}.log").open("ab") as log:
            self._processes[name] = run_bound([str(self._assets / name), *arguments], log.fileno())

    def _await_ready(self) -> None:
        """The server tells nobody that it is ready: it is asked again and again."""
        context = ssl.create_default_context(cafile=str(self.ca))
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended with {process.returncode}: {self.log(name)[-2000:]}")
            try:
                connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=5)
                connection.request("GET", "/readyz", headers={"Authorization": f"Bearer {self._tokens[ADMIN][0]}"})
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            finally:
                connection.close()
            if time.monotonic() > deadline:
                raise TimeoutError(f"the API server is not ready: {self.log('kube-apiserver')[-2000:]}")
            time.sleep(LOOK_AGAIN_S)


def run_bound(command: Sequence[str], output: int, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start a process that ends at the latest with the thread that calls this.

    A terminal's Ctrl-C does not reach it: it is ended in order by who started it.
    """
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "sh", "-c", IF_STILL_BOUND, str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        pass_fds=pass_fds,
    )


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _make_certificates(directory: Path) -> None:
    """A certificate authority, the API server's certificate, and the key that signs service accounts' tokens."""
    now = datetime.datetime.now(datetime.UTC)

    def builder(name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - VALID)
            .not_valid_after(now + VALID)
        )

    authority, server, accounts = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test-ca")])
    key_usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority.public_key())
    ca = (
        builder("test-ca", issuer, authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(key_usage, critical=True)
        .add_extension(identifier, critical=False)
        .sign(authority, hashes.SHA256())
    )
    names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ("127.0.0.1", "10.96.0.1")]
    names += [x509.DNSName(name) for name in ("localhost", "kubernetes.default.svc")]
    certificate = (
        builder("kube-apiserver", issuer, server)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(authority, hashes.SHA256())
    )
    (directory / "ca.crt").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (directory / "server.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    for name, key in (("server.key", server), ("accounts.key", accounts)):
        (directory / name).touch(mode=0o600)
        (directory / name).write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
