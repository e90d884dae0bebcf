"""How often equal methods are called different, and how often different ones are found: a simulation."""
