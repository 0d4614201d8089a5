from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rig import Rig

MakeRig = Callable[..., Rig]


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[MakeRig]:
    rigs: list[Rig] = []

    def make(*args: Any, **kwargs: Any) -> Rig:
        rigs.append(Rig(tmp_path, *args, **kwargs))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.crash()


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    return make_rig()
