"""From YAML to a sweep, and from a sweep to resolved trials."""
