from __future__ import annotations

from pathlib import Path

import pytest

from fluxburst import config
from fluxburst.errors import ConfigError
from fluxburst.model import PoolSpec

LEAD = """
[lead]
connect = "tcp://203.0.113.7:30093"
"""
POOL = """
[pool.c2]
provider = "gke"
hosts = "c2-[0-3]"
cores = 4
"""
GOOD = 'cluster = "corona"\n' + LEAD + POOL


def errors(text: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        config.parse(text, "burst.toml")
    return str(raised.value).splitlines()


def test_a_short_file_is_enough_and_the_defaults_are_those_of_queue_mode() -> None:
    site = config.parse(GOOD)
    pool = site.pool["c2"]
    assert (site.mode, site.staging_queue, site.home.queue, site.home.property) == ("queue", "staging", "batch", "home")
    assert (site.queue_of("c2"), site.property_of("c2"), site.pool_queues()) == ("c2", "c2", {"c2": "c2"})
    assert (pool.idle_s(90.0), pool.join_timeout, pool.keep_warm, pool.max_nodes) == (90.0, 600.0, 0, None)
    assert site.hosts_of("c2") == ("c2-0", "c2-1", "c2-2", "c2-3")


def test_durations_are_seconds_whatever_their_unit() -> None:
    site = config.parse(
        GOOD + 'idle_timeout = "2m"\njoin_timeout = 90\n[batching]\nidle = "250ms"\n[policy]\ncooldown_max = "2h"\n'
    )
    assert (site.pool["c2"].idle_timeout, site.pool["c2"].join_timeout) == (120.0, 90.0)
    assert (site.batching.idle, site.policy.cooldown_max) == (0.25, 7200.0)


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        ("flavour = 1", "[pool.c2] flavour: unknown key; remove it or mend its spelling"),
        ('idle_timeout = "soon"', "[pool.c2] idle_timeout: 'soon' is no duration; write such as"),
        ("idle_timeout = []", "[pool.c2] idle_timeout: [] is no duration"),
        ("stop_timeout = -1", "[pool.c2] stop_timeout: -1 is no duration"),
        ("max_nodes = -1", "[pool.c2] max_nodes: Input should be greater than or equal to 0"),
        ("gpus = 1.5", "[pool.c2] gpus: Input should be a valid integer"),
        ("usd_per_node_hour = -0.1", "[pool.c2] usd_per_node_hour: Input should be greater"),
        ("options = 3", "[pool.c2] options: Input should be a valid dictionary"),
        ("properties = [1]", "[pool.c2] properties: Input should be a valid string"),
        ("[limits]\nnodes = -1", "[limits] nodes: Input should be greater"),
        ("[batching]\nmax = true", "[batching] max: True is no duration"),
        ("[select]\nmax_nodes_per_job = 0", "[select] max_nodes_per_job: Input should be greater"),
        ("[select]\nusers = [1.5]", "[select] users: Input should be a valid"),
        ('[policy]\non_node_loss = "ignore"', "[policy] on_node_loss: Input should be 'leave' or 'resubmit'"),
        ("[policy]\nmax_resubmits = 0", "[policy] max_resubmits: Input should be greater"),
        ("[home]\nqueues = 'x'", "[home] queues: unknown key"),
        ("[provider]\ngke = 3", "[provider] gke: Input should be a valid dictionary"),
        ("[limit]\nnodes = 3", "limit: unknown key"),
    ],
)
def test_an_error_names_the_table_the_key_and_what_is_wrong(extra: str, line: str) -> None:
    found = errors(GOOD + extra)
    assert all(one.startswith("burst.toml: ") for one in found)
    assert found[0].startswith(f"burst.toml: {line}")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cluster = ", "burst.toml: not TOML: "),
        (LEAD + POOL, "burst.toml: cluster: is required"),
        ('cluster = "Corona"' + LEAD + POOL, "burst.toml: cluster: String should match"),
        ('cluster = "corona"' + POOL, "burst.toml: lead: is required"),
        ('cluster = "corona"' + LEAD, "burst.toml: pool: is required"),
        ('cluster = "corona"\npool = {}' + LEAD, "burst.toml: pool: Dictionary should have at least 1 item"),
        ('cluster = "corona"\nmode = "closed"' + LEAD + POOL, "burst.toml: mode: Input should be 'queue' or 'open'"),
        (GOOD.replace("cores = 4", ""), "burst.toml: [pool.c2] cores: is required"),
        (GOOD.replace("cores = 4", "cores = 0"), "burst.toml: [pool.c2] cores: Input should be greater"),
        (GOOD.replace("[pool.c2]", "[pool.C2]"), "burst.toml: [pool.C2]: a pool's name is lower-case letters"),
    ],
)
def test_what_is_missing_or_misnamed_is_told(text: str, line: str) -> None:
    assert errors(text)[0].startswith(line)


def test_every_mistake_is_told_at_once() -> None:
    found = errors(GOOD.replace("cores = 4", "cores = 0") + "[limits]\nnodes = -1\n[batching]\nmax = 'x'\n")
    assert {line.split(": ")[1] for line in found} == {"[pool.c2] cores", "[limits] nodes", "[batching] max"}


@pytest.mark.parametrize(
    ("hosts", "what"),
    [
        ("", "names no host"),
        ("c2_[0-3]", "'c2_0' is no RFC 1035 label"),
        ("c2-[0-3].example.org", "'c2-0.example.org' is no RFC 1035 label"),
        ("-c2", "'-c2' is no RFC 1035 label"),
        ("c" * 64, "is no RFC 1035 label"),
        ("c2-[3-0]", "is no host list"),
        ("c2-[0-3],c2-1", "names a host twice"),
    ],
)
def test_host_names_are_labels_in_a_host_list_without_repetition(hosts: str, what: str) -> None:
    (line,) = errors(GOOD.replace("c2-[0-3]", hosts))
    assert line.startswith("burst.toml: [pool.c2] hosts: ")
    assert what in line


@pytest.mark.parametrize(
    "connect", ["203.0.113.7:30093", "tcp://203.0.113.7", "udp://a:1", "tcp://a:123456", "tcp://a b:1"]
)
def test_an_address_that_followers_cannot_dial_is_refused(connect: str) -> None:
    (line,) = errors(GOOD.replace("tcp://203.0.113.7:30093", connect))
    assert line.startswith(f"burst.toml: [lead] connect: {connect!r} is no ZeroMQ endpoint; write such as")


@pytest.mark.parametrize(
    ("lead", "what"),
    [
        ("", "connect is required, or expose = 'nodeport' where the lead is a pod"),
        ('connect = "tcp://a:1"\nexpose = "nodeport"', "connect and expose exclude each other; remove one"),
    ],
)
def test_the_lead_s_address_is_given_or_found_out(lead: str, what: str) -> None:
    (line,) = errors(GOOD.replace('connect = "tcp://203.0.113.7:30093"', lead))
    assert line == f"burst.toml: lead: {what}"


@pytest.mark.parametrize("connect", ["tcp://lead.example.org:1", "tcp://[2001:db8::7]:30093", "ipc:///tmp/lead"])
def test_names_ipv6_and_local_sockets_are_addresses(connect: str) -> None:
    assert config.parse(GOOD.replace("tcp://203.0.113.7:30093", connect)).lead.connect == connect


def second(hosts: str = "d-[0-1]", **keys: str) -> str:
    more = "".join(f'{key} = "{value}"\n' for key, value in keys.items())
    return f'[pool.d]\nprovider = "eks"\nhosts = "{hosts}"\ncores = 2\n{more}'


def test_two_pools_share_no_host() -> None:
    assert errors(GOOD + second("d-0,c2-[3-4]")) == [
        "burst.toml: [pool.d] hosts: c2-3 is already in [pool.c2]; give each pool its own range"
    ]


def test_two_pools_share_no_queue() -> None:
    assert errors(GOOD + second(queue="c2")) == [
        "burst.toml: [pool.d] queue: 'c2' is already the queue of [pool.c2]; in queue mode each pool has its own"
    ]


def test_no_pool_has_the_staging_queue() -> None:
    assert errors(GOOD + second(queue="staging")) == [
        "burst.toml: [pool.d] queue: 'staging' is the staging queue; choose another name"
    ]


def test_a_pool_keeps_no_more_nodes_warm_than_it_declares() -> None:
    assert config.parse(GOOD + "keep_warm = 4").pool["c2"].keep_warm == 4
    assert errors(GOOD + "keep_warm = 5") == [
        "burst.toml: [pool.c2] keep_warm: 5 is more than the 4 hosts of the pool; lower it, or declare more hosts"
    ]


OPEN = GOOD.replace('"corona"', '"corona"\nmode = "open"')


def test_open_mode_has_no_queues() -> None:
    site = config.parse(OPEN + second())
    assert (site.queue_of("c2"), site.pool_queues()) == ("", {})
    (line,) = errors(OPEN + second(queue="d"))
    assert line.startswith("burst.toml: [pool.d] queue: has no meaning in open mode")


def test_a_pools_queue_and_property_may_have_other_names() -> None:
    site = config.parse(GOOD + second(queue="cloud", property="eks"))
    assert (site.queue_of("d"), site.property_of("d")) == ("cloud", "eks")
    assert site.pool_queues() == {"c2": "c2", "cloud": "d"}


def test_a_provider_is_given_its_own_pools_alone() -> None:
    site = config.parse(GOOD + 'usd_per_node_hour = 0.2\n[pool.c2.options]\nzone = "b"\n' + second())
    assert site.specs("gke") == {
        "c2": PoolSpec("c2", site.hosts_of("c2"), 4, 0, usd_per_node_hour=0.2, options={"zone": "b"})
    }
    assert list(site.specs("eks")) == ["d"]
    assert site.specs("nosuch") == {}


def test_the_state_goes_where_the_file_or_else_the_xdg_standard_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.parse(f'state_dir = "/var/lib/burst"\n{GOOD}').state_path() == Path("/var/lib/burst")
    monkeypatch.setenv("XDG_STATE_HOME", "/x")
    assert config.parse(GOOD).state_path() == Path("/x/fluxburst/corona")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert config.parse(GOOD).state_path() == Path("/home/ada/.local/state/fluxburst/corona")


def test_a_state_directory_that_depends_on_where_one_stands_is_refused() -> None:
    for relative in ("burst", "~/burst"):
        assert errors(f'state_dir = "{relative}"\n{GOOD}') == [
            f"burst.toml: state_dir: '{relative}' is no absolute path; write such as '/var/lib/fluxburst/corona'"
        ]


def test_a_file_is_loaded_and_its_path_is_in_front_of_each_error(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(GOOD)
    assert config.load(path) == config.parse(GOOD)
    path.write_text(GOOD + "flavour = 1")
    with pytest.raises(ConfigError, match="unknown key") as raised:
        config.load(path)
    assert str(raised.value).startswith(f"{path}: [pool.c2] flavour")


def test_a_file_that_cannot_be_read_is_named_with_the_way_out(tmp_path: Path) -> None:
    for path in (tmp_path / "nosuch.toml", tmp_path):
        with pytest.raises(ConfigError, match=r"cannot be read.*--config") as raised:
            config.load(path)
        assert str(raised.value).startswith(f"{path}: ")
    (tmp_path / "latin.toml").write_bytes(b"cluster = '\xe9'")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path / "latin.toml")
