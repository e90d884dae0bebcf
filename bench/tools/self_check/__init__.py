"""``tuneoff doctor --measure``: what only a device itself can show, tried by small trials on it."""
