"""The demo does what it says, on the mock and on a real Flux, and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
WIDE = 200


@pytest.fixture
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    vars(module)["console"] = Console(file=io.StringIO(), width=WIDE)
    return module


def told(text: str) -> None:
    """What everyone is shown at the end, wherever it ran."""
    assert "every node that was bought is gone again" in text
    rows = {line.split("  ")[1].strip(): line for line in text.splitlines() if line.startswith("ƒ") and "  " in line}
    assert "lead0" in rows["ordinary"]
    assert "burst-" in rows["two nodes"]
    assert all("burst-" in rows[f"one core, {number}"] for number in range(1, 5))
    assert "nowhere" in rows["impossible"]
    assert text.rstrip().endswith("refused: burst: needs 9 nodes, the pool declares 4")


def test_the_demo_ends_by_itself_on_the_mock(demo: ModuleType, tmp_path: Path) -> None:
    with demo.MockTheatre(tmp_path / "state").open() as theatre:
        demo.play(theatre)
    told(demo.console.file.getvalue())


@pytest.mark.flux
def test_the_demo_is_real_where_there_is_a_flux() -> None:
    done = subprocess.run(
        [sys.executable, DEMO], capture_output=True, text=True, timeout=90, check=False, env=environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a real Flux" in done.stdout
    told(done.stdout)


@pytest.mark.flux
def test_an_interrupted_demo_cleans_up() -> None:
    running = subprocess.Popen(
        [sys.executable, "-u", DEMO],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    assert running.stdout is not None
    directory = ""
    for line in iter(running.stdout.readline, ""):
        if line.startswith("Its files are in "):
            directory = line.split()[4]
        if "joined" in line:
            break
    assert any(directory in line for line in command_lines())
    running.send_signal(signal.SIGINT)
    rest = running.stdout.read()
    running.stdout.close()
    assert running.wait(30) == 130
    assert "cleaned up" in rest
    assert not Path(directory).exists()
    deadline = time.monotonic() + 20  # the supervisor ends by itself, once it has no child and no client
    while any(directory in line for line in command_lines()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("FLUX_")} | {"COLUMNS": str(WIDE)}


def command_lines() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
