"""Rendering, without Flux."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxburst.errors import ConfigError
from fluxburst.flux.render import Shape, bootstrap_hosts, excluded, load_site, overlaps, render, shapes

from .conftest import burst, site

PLUGIN = Path("/opt/fluxburst/frobnicator.py")


def lead(table: dict[str, Any], mode: str = "queue", extra: str = "") -> dict[str, Any]:
    return render(burst(mode, extra=extra), table, frobnicator=PLUGIN).lead


def test_pools_follow_the_site_s_own_hosts_in_the_order_of_burst_toml() -> None:
    hosts = bootstrap_hosts(lead(site()))
    assert hosts == ("lead0", "c2-0", "c2-1", "c2-2", "c2-3", "gpu-0", "gpu-1")


def test_the_site_s_own_table_is_not_changed() -> None:
    own = site(queues={"debug": {}})
    before = copy.deepcopy(own)
    lead(own)
    assert own == before


def test_each_pool_gets_its_resources_and_the_site_s_nodes_get_the_home_property() -> None:
    nodes = shapes(lead(site())["resource"]["config"])
    assert nodes["lead0"].properties == {"home"}
    assert nodes["c2-3"] == Shape(frozenset({0, 1}), frozenset(), frozenset({"c2"}))
    assert nodes["gpu-0"] == Shape(frozenset(range(4)), frozenset({0, 1}), frozenset({"gpu", "a100"}))


def test_a_site_without_queues_gets_a_home_queue_as_the_default() -> None:
    rendered = lead(site())
    assert rendered["queues"] == {
        "batch": {"requires": ["home"]},
        "c2": {"requires": ["c2"]},
        "gpu": {"requires": ["gpu"]},
        "staging": {},
    }
    assert rendered["policy"]["jobspec"]["defaults"]["system"] == {"queue": "batch"}


def test_the_site_s_queues_keep_what_they_require_and_the_others_are_bound_to_home() -> None:
    own = site(queues={"fast": {"requires": ["ssd"]}, "any": {"policy": {"limits": {"duration": "1h"}}}})
    rendered = lead(own)
    assert rendered["queues"]["fast"] == {"requires": ["ssd"]}
    assert rendered["queues"]["any"] == {"policy": {"limits": {"duration": "1h"}}, "requires": ["home"]}
    assert "policy" not in rendered, "the site has no default queue, so it gets none"


def test_open_mode_adds_no_queue_and_no_home_property() -> None:
    rendered = lead(site(), "open")
    assert "queues" not in rendered
    assert shapes(rendered["resource"]["config"])["lead0"].properties == frozenset()


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (None, ["defaults", str(PLUGIN), "constraints"]),
        (["a", "constraints", "b"], ["a", str(PLUGIN), "constraints", "b"]),
    ],
)
def test_the_plugin_stands_right_before_constraints(own: list[str] | None, expected: list[str]) -> None:
    table = site() if own is None else site(ingest={"frobnicator": {"plugins": own}})
    assert lead(table)["ingest"]["frobnicator"]["plugins"] == expected


def test_the_burst_table_counts_home_nodes_by_shape_without_excluded_ones() -> None:
    own = site()
    own["bootstrap"]["hosts"].append({"host": "n[1-4]"})
    own["resource"] |= {"exclude": "n4", "config": [*own["resource"]["config"], {"hosts": "n[1-4]", "cores": "0-7"}]}
    assert lead(own)["burst"]["capacity"] == [
        {"count": 1, "cores": 2, "gpus": 0, "properties": ["home"]},
        {"count": 3, "cores": 8, "gpus": 0, "properties": ["home"]},
    ]


def test_only_the_site_s_own_ranks_have_an_ingest_unless_the_site_says_otherwise() -> None:
    assert lead(site())["modules"]["job-ingest"] == {"ranks": "0"}
    assert lead(site(modules={"job-ingest": {"ranks": "all"}}))["modules"]["job-ingest"] == {"ranks": "all"}


def test_a_follower_dials_the_lead_s_public_address_and_is_equal_otherwise() -> None:
    rendered = render(burst(port=4711), site(), frobnicator=PLUGIN)
    expected = copy.deepcopy(rendered.lead)
    expected["bootstrap"]["hosts"][0]["connect"] = "tcp://127.0.0.1:4711"
    assert rendered.follower == expected


def test_a_site_s_own_queues_leave_the_name_of_the_home_queue_free() -> None:
    extra = '[pool.late]\nprovider = "local"\nhosts = "late-0"\ncores = 1\nqueue = "batch"\n'
    rendered = lead(site(queues={"main": {}}), extra=extra)
    assert rendered["queues"]["batch"] == {"requires": ["late"]}


def broken(change: str) -> dict[str, Any]:
    """A site with one thing wrong, made by a TOML fragment of changed tables."""
    own = site()
    for table, value in tomllib.loads(change).items():
        own[table] = own.get(table, {}) | value if value else {}
    return own


@pytest.mark.parametrize(
    ("change", "extra", "said"),
    [
        ("[bootstrap]\nhosts = []", "", [r"\[bootstrap\] hosts: is missing", "bind ="]),
        ('[bootstrap]\ncurve_cert = ""', "", [r"\[bootstrap\] curve_cert", "flux keygen"]),
        ('[bootstrap]\nhosts = [{host = "lead0", connect = "tcp://a:1"}]', "", ["rank 0, lead0, has no bind"]),
        ('[bootstrap]\nhosts = [{host = "lead0", bind = "tcp://*:1"}]', "", ["rank 0, lead0, has no connect"]),
        (
            '[bootstrap]\nhosts = [{host = "lead0", bind = "tcp://*:1", connect = "tcp://a:1"}, {host = "c2-[1-2]"}]',
            "",
            [r"\[pool.c2\] hosts: c2-1", r"\[bootstrap\] hosts"],
        ),
        ('[resource]\nconfig = []\npath = "/etc/R"', "", [r"\[resource\] config", "path = '/etc/R'", "flux resource"]),
        ('[resource]\nscheduling = "/etc/jgf"', "", [r"\[resource\] scheduling", "remove"]),
        (
            '[[resource.config]]\nhosts = "lead0,gpu-1"\ncores = "0"',
            "",
            [r"\[pool.gpu\] hosts: gpu-1", r"\[resource\] config"],
        ),
        (
            '[[resource.config]]\nhosts = "lead0"\ncores = "0"\nproperties = ["c2"]',
            "",
            [r"\[pool.c2\] property: 'c2'", r"\[resource\] config", "choose another"],
        ),
        ('[queues.c2]\nrequires = ["ssd"]', "", [r"\[pool.c2\] queue", r"\[queues.c2\]", "choose another"]),
        ('[queues.staging]\nrequires = ["ssd"]', "", ["staging_queue", r"\[queues.staging\]"]),
        ('[queues.fast]\nrequires = ["a100"]', "", [r"\[queues.fast\]", r"\[pool.gpu\]", "add 'home'"]),
        ("[ingest.frobnicator]\ndisable = true", "", [r"\[ingest.frobnicator\] disable", "remove"]),
        ('[ingest.frobnicator]\nplugins = ["defaults"]', "", [r'"constraints" is missing', "add"]),
        (
            '[[resource.config]]\nhosts = "leed"\ncores = "0"',
            "",
            [r"\[bootstrap\] hosts: lead0 is not in \[resource\] config", "would not start; declare the same"],
        ),
        (
            '[[resource.config]]\nhosts = "lead0,n1"\ncores = "0"',
            "",
            [r"\[resource\] config: n1 is not in \[bootstrap\] hosts", "declare the same"],
        ),
        (
            '[policy.jobspec.defaults.system]\nqueue = "nope"',
            "",
            [r"\[policy.jobspec.defaults.system\] queue: 'nope' is not in \[queues\]", "name a queue"],
        ),
        (
            "",
            '[pool.x]\nprovider = "local"\nhosts = "x-0"\ncores = 1\nqueue = "batch"\n',
            [r"\[pool.x\] queue: 'batch' is \[home\] queue", "choose another name"],
        ),
        ("", '[home]\nqueue = "gpu"\n', [r"\[pool.gpu\] queue: 'gpu' is \[home\] queue"]),
        ("", '[home]\nqueue = "staging"\n', [r"staging_queue: 'staging' is \[home\] queue"]),
        ("[queues.staging]", '[home]\nqueue = "staging"\n', [r"staging_queue: 'staging' is \[home\] queue"]),
        ("[burst]\nmode = 3", "", [r"\[burst\]", "remove the table"]),
        (
            "",
            '[pool.x]\nprovider = "local"\nhosts = "x-0"\ncores = 1\nproperty = "gpu"\n',
            [r"\[queues.gpu\] requires", r"\[pool.x\]"],
        ),
    ],
)
def test_a_contradiction_names_both_places_and_the_fix(change: str, extra: str, said: list[str]) -> None:
    for part in said:
        with pytest.raises(ConfigError, match=part):
            lead(broken(change), extra=extra)


names = st.sampled_from(["debug", "fast", "night", "batch"])
own_queues = st.dictionaries(names, st.sampled_from([{}, {"requires": ["ssd"]}, {"requires": ["home"]}]), max_size=3)
own_nodes = st.lists(
    st.fixed_dictionaries(
        {"hosts": st.sampled_from(["lead0", "n[0-7]", "n[0-3],m1", "m[1-2]"]), "cores": st.sampled_from(["0", "0-3"])},
        optional={"gpus": st.just("0-1"), "properties": st.lists(st.sampled_from(["ssd", "home"]), unique=True)},
    ),
    min_size=1,
    max_size=4,
)


def site_of(nodes: list[dict[str, Any]], **tables: Any) -> dict[str, Any]:
    """A site of the lead and these nodes, all of them declared in ``[bootstrap]`` too."""
    own = site(**tables)
    own["resource"]["config"] += nodes
    hosts = sorted(shapes(nodes).keys() - {"lead0"})
    own["bootstrap"]["hosts"] += [{"host": host} for host in hosts]
    return own


@given(queues=own_queues, nodes=own_nodes, modes=st.lists(st.sampled_from(["queue", "open"]), min_size=1, max_size=3))
def test_rendering_a_rendered_file_again_changes_nothing(
    queues: dict[str, Any], nodes: list[dict[str, Any]], modes: list[str]
) -> None:
    table = site_of(nodes, queues=queues) if queues else site_of(nodes)
    for mode in modes:
        first = render(burst(mode), table, frobnicator=PLUGIN)
        again = render(burst(mode), tomllib.loads(first.lead_toml()), frobnicator=PLUGIN)
        assert again.lead_toml() == first.lead_toml()
        assert again.follower_toml() == first.follower_toml()
        table = first.lead


@given(queues=own_queues, nodes=own_nodes)
def test_no_queue_admits_nodes_of_another_room(queues: dict[str, Any], nodes: list[dict[str, Any]]) -> None:
    config = burst()
    rendered = render(config, site_of(nodes, queues=queues), frobnicator=PLUGIN).lead
    ghosts = {host for pool in config.pool for host in config.hosts_of(pool)}
    found = shapes(rendered["resource"]["config"])
    home = {host: shape for host, shape in found.items() if host not in ghosts}
    assert not list(overlaps(rendered["queues"], config, home))
    for queue, table in rendered["queues"].items():
        admits = {host for host, shape in found.items() if shape.properties.issuperset(table.get("requires", []))}
        if queue in config.pool_queues():
            assert admits == set(config.hosts_of(config.pool_queues()[queue]))
        elif queue != "staging":
            assert not admits & ghosts


def test_a_changed_burst_toml_replaces_what_the_former_one_had_added() -> None:
    extra = '[pool.late]\nprovider = "local"\nhosts = "late-[0-9]"\ncores = 1\n'
    table = lead(lead(site(), extra=extra))
    assert table == lead(site())


def test_load_site_merges_a_directory_s_files_in_name_order(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text('[bootstrap]\ncurve_cert = "b"\n[queues.x]\n')
    (tmp_path / "a.toml").write_text('[bootstrap]\ncurve_cert = "a"\ndefault_port = 1\n')
    (tmp_path / "c.txt").write_text("not read")
    assert load_site(tmp_path) == {"bootstrap": {"curve_cert": "b", "default_port": 1}, "queues": {"x": {}}}


def test_load_site_names_the_file_that_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no \*.toml"):
        load_site(tmp_path)
    (tmp_path / "a.toml").write_text("[")
    with pytest.raises(ConfigError, match=r"a\.toml: not TOML"):
        load_site(tmp_path)
    with pytest.raises(
        ConfigError, match=r"none\.toml: cannot be read: .*; name the directory or file that Flux itself"
    ):
        load_site(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[policy]\njobspec = 3", r"\[policy\] jobspec"),
        ("[policy.jobspec]\ndefaults = 'x'", r"\[policy\.jobspec\] defaults"),
        ("[policy.jobspec.defaults.system]\nqueue = 3", r"\[policy\.jobspec\.defaults\.system\] queue"),
        ("modules = 3", "modules"),
        ("[modules]\njob-ingest = 3", r"\[modules\] job-ingest"),
        ("[modules.job-ingest]\nranks = [1]", r"\[modules\.job-ingest\] ranks"),
        ("[[bootstrap.hosts]]\nhost = 'a'\nparent = [1]", r"\[bootstrap\] hosts"),
        ("burst = 3", "burst"),
        ("[burst]\nfrobnicator = 3", r"\[burst\] frobnicator"),
    ],
)
def test_load_site_names_a_key_of_the_wrong_type(tmp_path: Path, text: str, place: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ConfigError, match=rf": {place}: Input should be"):
        load_site(tmp_path)


@pytest.mark.parametrize(("text", "hosts"), [("c2-[0-1]", {"c2-0", "c2-1"}), ("0,2", {"lead0", "c2-1"}), ("", set())])
def test_exclude_is_a_host_list_or_ranks(text: str, hosts: set[str]) -> None:
    table = lead(site())
    table["resource"]["exclude"] = text
    assert excluded(table) == hosts
