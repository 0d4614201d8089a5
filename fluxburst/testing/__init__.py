"""For tests of fluxburst and of plugins: a private Flux instance that can burst, with its service."""

from fluxburst.testing.site import PrivateSite

__all__ = ["PrivateSite"]
