"""Which settings are tried next, and what the searches found."""
