"""docs/generate.py: what it finds out of step."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "generate.py"


@pytest.fixture
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_page_that_is_behind_the_code_is_named_with_its_difference(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "REFERENCE", tmp_path)
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    page = tmp_path / "states.md"
    page.write_text(page.read_text().replace("| `gone` |", "| `finished` |"))
    capsys.readouterr()
    assert generate.main(["--check"]) == 1
    told = capsys.readouterr().err
    assert "states.md is behind the code" in told
    assert "-| `finished` |" in told
    assert "`finished`" in page.read_text()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<!-- from LICENSE -->\n```text\nno such line\n```\n", "a listing from LICENSE differs from the file"),
        ("[nothing](missing.md)", "the link to missing.md leads nowhere"),
        (
            "def fluxburst_providers()",
            "lacks the hook as it is now: def fluxburst_commands(group: click.Group) -> None",
        ),
    ],
)
def test_hand_written_pages_are_held_to_the_code(
    generate: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    problem: str,
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "LICENSE").write_text("MIT\n")
    (tmp_path / "README.md").write_text("")
    (tmp_path / "docs" / "plugin-authors.md").write_text(text)
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "REFERENCE", tmp_path / "docs" / "reference")
    assert generate.main(["--check"]) == 1
    assert problem in capsys.readouterr().err


def test_a_key_of_burst_toml_without_a_meaning_stops_it(generate: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"Pool\.hosts has no docstring"):
        generate._documented("Pool.hosts", None)
