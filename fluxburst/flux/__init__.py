"""Everything about Flux: the only room that imports ``flux``, and that only when an instance is opened."""
