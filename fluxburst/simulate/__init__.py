"""Tries a burst.toml on a queue of yesterday: the service itself, on the mock, in virtual time.

:mod:`~fluxburst.simulate.trace` reads what happened, :mod:`~fluxburst.simulate.engine` lets it happen again,
:mod:`~fluxburst.simulate.metrics` measures it, :mod:`~fluxburst.simulate.report` shows it.
:mod:`~fluxburst.simulate.policies` has other ways to decide, to compare with.
"""
