"""Frozen weights of which each rank holds a slice, and how they become whole for a while."""
