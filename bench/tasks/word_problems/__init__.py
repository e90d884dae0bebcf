"""The task word_problems with its data."""
