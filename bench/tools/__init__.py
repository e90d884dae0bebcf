"""Programs that make committed data."""
