"""A Flux instance and a cloud that exist only in memory, in real or in virtual time."""
