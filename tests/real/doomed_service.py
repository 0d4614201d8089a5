"""`flux burst run`, but it ends by SIGKILL at one point of its path: python doomed_service.py "POINT" ARGUMENTS.

POINT is "before EFFECT" (what it is for is committed, it has not been let go), "after EFFECT" (its outcome is there and
not recorded), or "while STATE" (a node's change to that state is committed).
"""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import Future
from typing import Any

from fluxburst import service
from fluxburst.cli import main
from fluxburst.controller import Effect

POINT = sys.argv[1]


def reached(point: str) -> None:
    if point == POINT:
        os.kill(os.getpid(), signal.SIGKILL)


class DoomedService(service.Service):
    def _perform(self, effect: Effect) -> Future[Any]:
        reached(f"before {type(effect).__name__}")
        return super()._perform(effect)

    def _done(self, effect: Effect, begun_at: float, future: Future[Any]) -> None:
        reached(f"after {type(effect).__name__}")
        super()._done(effect, begun_at, future)

    def _step(self) -> None:
        super()._step()
        for node in self.world.nodes.values():
            reached(f"while {node.record.state}")


if __name__ == "__main__":
    service.Service = DoomedService  # type: ignore[misc]  # what `flux burst run` builds
    main(["run", *sys.argv[2:]])
