"""One thread, deterministic: events and completed calls in, records and effects out.

A step runs the stages of :func:`~fluxburst.controller.controller.stages` over the world, commits what they recorded,
and only then lets the effects go. Everything is level-triggered: a stage looks at what is, not at what happened.
"""

from fluxburst.controller.controller import Controller, Step, stages
from fluxburst.controller.effects import Done, Effect
from fluxburst.controller.world import World

__all__ = ["Controller", "Done", "Effect", "Step", "World", "stages"]
