from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fluxburst import __version__, cli
from fluxburst.errors import ConfigError, FluxburstError

HEAVY = ("pydantic", "rich", "flux", "ClusterShell", "structlog", "kubernetes", "boto3", "google", "prometheus_client")


def python(program: str, *, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "", "PYTHONPATH": str(path or "")}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_help_imports_nothing_heavy_of_its_own() -> None:
    done = python(
        f"""
import sys
from importlib import metadata
metadata.entry_points = lambda **_: ()  # no plugin is installed
from fluxburst.cli import main
try:
    main(["--help"])
finally:
    print(*sorted({{name.partition(".")[0] for name in sys.modules}} & {{*{HEAVY!r}}}), file=sys.stderr)
"""
    )
    assert done.returncode == 0
    assert "Run the service on the lead broker." in done.stdout
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("name", [name for name, _ in cli._COMMANDS.items()])
def test_every_command_is_where_the_table_says_and_explains_itself(name: str) -> None:
    result = CliRunner().invoke(cli.cli, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"Usage: cli {name}")


def test_the_help_lists_every_command_with_its_line() -> None:
    output = CliRunner().invoke(cli.cli, ["--help"]).output
    for name, (_, line) in cli._COMMANDS.items():
        assert f"  {name} " in output
        assert line in output


def test_the_short_line_in_the_list_is_how_the_commands_own_help_begins() -> None:
    context = click.Context(cli.cli)
    for name, (_, line) in cli._COMMANDS.items():
        command = cli.cli.get_command(context, name)
        assert command is not None
        own, listed = (command.help or "").split()[0], line.split()[0]
        assert own == listed, f"{name}: {own!r} and {listed!r}"


def test_the_version_is_told() -> None:
    assert __version__ in CliRunner().invoke(cli.cli, ["--version"]).output


def test_an_unknown_command_is_a_usage_error() -> None:
    result = CliRunner().invoke(cli.cli, ["nosuch"])
    assert result.exit_code == 2
    assert "No such command 'nosuch'" in result.output


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    @click.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr("fluxburst.cli.plugins.commands", lambda: {"fail": fail})


def test_an_error_is_one_line_on_standard_error_and_exit_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, FluxburstError("state_dir /x: cannot be used; set another"))
    with pytest.raises(SystemExit) as raised:
        cli.main(["fail"])
    assert raised.value.code == 1
    assert capsys.readouterr() == ("", "flux burst: state_dir /x: cannot be used; set another\n")


def test_each_of_several_mistakes_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, ConfigError("burst.toml: a\nburst.toml: b"))
    with pytest.raises(SystemExit):
        cli.main(["fail"])
    assert capsys.readouterr().err == "flux burst: burst.toml: a\nflux burst: burst.toml: b\n"


def test_an_error_of_our_own_making_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["fail"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["explain", "job!"], "flux burst: 'job!' is no job id; write such as ƒ3aXb, f3aXb or 1234\n"),
        (["run", "--config", "/nosuch/burst.toml"], "flux burst: /nosuch/burst.toml: cannot be read"),
    ],
)
def test_a_users_mistake_is_told_before_any_broker_is_called(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == 1
    assert capsys.readouterr().err.startswith(line)


PLUGIN = """
import click
from fluxburst.provider import hookimpl

@click.command(help="Show what is left of the bank.")
def bank():
    click.echo("17 node-hours")

@hookimpl
def fluxburst_commands(group):
    group.add_command(bank)
"""
BROKEN = """
from fluxburst.provider import hookimpl

@hookimpl
def fluxburst_commands(group):
    raise RuntimeError("no licence")
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    for name, source in (("acme_bank", PLUGIN), ("acme_broken", BROKEN)):
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[fluxburst]\n{name} = {name}\n")
    return tmp_path


def burst(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(f"from fluxburst.cli import main; main({list(arguments)!r})", path=site)


def test_a_plugins_command_is_listed_and_run_and_a_broken_plugin_breaks_nothing(site: Path) -> None:
    listed = burst(site, "--help")
    assert "bank" in listed.stdout
    assert "Show what is left of the bank." in listed.stdout
    assert listed.stderr == "flux burst: plugin acme_broken adds no command: RuntimeError: no licence\n"
    run = burst(site, "bank")
    assert (run.returncode, run.stdout) == (0, "17 node-hours\n")


def test_no_plugin_is_loaded_for_a_built_in_command(site: Path) -> None:
    done = burst(site, "pause", "--help")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("duration", ["soon", "-5m"])
def test_a_malformed_duration_is_a_usage_error_that_shows_it(duration: str) -> None:
    result = CliRunner().invoke(cli.cli, ["request", "c2", "-N", "2", f"--for={duration}"])
    assert result.exit_code == 2
    assert f"{duration!r} is no duration" in result.output
