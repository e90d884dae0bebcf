"""Finds the class of a name, its source and its settings."""
