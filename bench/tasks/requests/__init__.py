"""The task requests with its data."""
