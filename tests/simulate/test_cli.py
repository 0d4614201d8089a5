from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fluxburst import cli
from fluxburst.errors import FluxburstError

BURST = """
cluster = "sim"
[lead]
connect = "tcp://127.0.0.1:8050"
[pool.cloud]
provider = "clouds"
hosts = "c-[0-15]"
cores = 1
usd_per_node_hour = 1.0
idle_timeout = "60s"
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "burst.toml").write_text(BURST)
    lines = [
        f"{n} {60 * n} -1 {300 + 10 * n} {1 + n % 5} -1 -1 -1 -1 -1 1 {n % 3} 1 -1 1 -1 -1 -1\n" for n in range(30)
    ]
    (tmp_path / "trace.swf").write_text("; UnixStartTime: 749458803\n" + "".join(lines))
    return tmp_path


def run(files: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(
        cli.cli,
        ["simulate", str(files / "trace.swf"), "--config", str(files / "burst.toml"), "--home", "4", *arguments],
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit | FluxburstError):
        raise result.exception
    return result


def test_the_table_has_a_column_for_home_and_for_each_policy_and_a_row_for_each_figure(files: Path) -> None:
    result = run(files, "--policy", "ours", "--policy", "one-burst-a-job")
    assert result.exit_code == 0, result.output
    head, *rows = result.output.splitlines()
    assert head.split() == ["home", "ours", "one-burst-a-job"]
    figures = {row[:24].strip(): row[24:].split() for row in rows}
    assert figures["jobs"] == ["24", "30", "30"]
    assert figures["refused at submit"] == ["6", "0", "0"]
    assert figures["caps exceeded"] == ["0", "0", "0"]
    assert figures["dollars"][0] == "$0.00"


def test_figures_and_page_are_the_same_bytes_every_time(files: Path) -> None:
    pages = []
    for turn in ("1", "2"):
        html, figures = files / f"{turn}.html", files / f"{turn}.json"
        result = run(files, "--html", str(html), "--json", str(figures), "--stock-out", "0.2", "--seed", "7")
        assert result.exit_code == 0, result.output
        pages.append((html.read_bytes(), figures.read_bytes()))
    assert pages[0] == pages[1]
    told = json.loads(pages[0][1])
    assert told["policies"]["ours"]["survived"]["stock_out"] > 0
    assert told["facts"]["seed"] == "7"


def test_the_page_needs_nothing_from_elsewhere_and_shows_four_plots(files: Path) -> None:
    html = files / "page.html"
    assert run(files, "--html", str(html)).exit_code == 0
    page = html.read_text()
    assert page.count("<svg") == 4
    assert not re.search(r"<(script|link|img|iframe)\b|@import|url\((?!#)", page)
    for title in ("Queue length", "Nodes by pool", "Dollars", "Waits"):
        assert f"<h2>{title}</h2>" in page


def test_figures_can_be_printed_instead_of_the_table(files: Path) -> None:
    result = run(files, "--json", "-", "--no-baseline")
    assert list(json.loads(result.output)["policies"]) == ["ours"]


def test_a_price_list_goes_before_burst_toml(files: Path) -> None:
    prices = files / "prices.toml"
    prices.write_text('[[price]]\npool = "cloud"\nfactor = 0.5\n')
    usd = [
        json.loads(run(files, "--json", "-", *more).output)["policies"]["ours"]["usd"]
        for more in ((), ("--prices", str(prices)))
    ]
    assert usd[1] == pytest.approx(usd[0] / 2)


@pytest.mark.parametrize(
    ("prices", "told"),
    [("[[price]]\nfactor = -1\n", "price: Input should be"), ("x = [", "not TOML"), ("[[cost]]\n", "unknown key")],
)
def test_a_wrong_price_list_is_told_with_its_place(files: Path, prices: str, told: str) -> None:
    path = files / "prices.toml"
    path.write_text(prices)
    result = run(files, "--prices", str(path))
    assert isinstance(result.exception, FluxburstError)
    assert str(path) in str(result.exception)
    assert told in str(result.exception)


def test_no_job_bursts_where_none_may(files: Path) -> None:
    told = json.loads(run(files, "--json", "-", "--burstable", "0").output)["policies"]
    assert (told["ours"]["burst_jobs"], told["ours"]["nodes"]) == (0, 0)
    assert told["ours"]["waits"] == told["home"]["waits"]


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [("fluxburst_mock", ()), ("jinja2", ("--html", "x.html")), ("matplotlib", ("--html", "x.html"))],
)
def test_what_is_not_installed_is_named_with_the_extra_that_brings_it(
    files: Path, monkeypatch: pytest.MonkeyPatch, missing: str, arguments: tuple[str, ...]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    result = run(files, *arguments)
    assert isinstance(result.exception, FluxburstError)
    assert missing.replace("_", "-") in str(result.exception)
    assert "pip install 'fluxburst[simulate]'" in str(result.exception)


def test_the_options_that_were_given_stand_on_the_page(files: Path) -> None:
    told = json.loads(run(files, "--json", "-", "--max-nodes", "3", "--users", "b,a", "--no-baseline").output)
    assert told["facts"]["options"] == "--users=a,b --max-nodes=3"


@pytest.mark.parametrize("factor", ["0", "-1", "x", "inf", "nan"])
def test_a_limit_factor_that_is_none_is_refused(files: Path, factor: str) -> None:
    result = run(files, "--limit-factor", factor)
    assert result.exit_code == 2
    assert "neither a number above 0 nor 'none'" in result.output


def test_the_bar_is_drawn_on_a_terminal_only(files: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fluxburst", "simulate", "trace.swf", "--config", "burst.toml", "--home", "4"],
        cwd=files,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
