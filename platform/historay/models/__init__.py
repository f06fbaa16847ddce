"""Networks by name, the bundle that ships one, and the registry that names it."""
