"""Everything about Flux. The only room whose modules import ``flux``, and those do it only when an instance is opened."""
