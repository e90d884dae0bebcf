"""``tuneoff doctor --measure``: small trials that measure what only the device itself can show."""
