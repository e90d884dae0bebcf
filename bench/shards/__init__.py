"""Frozen weights of which each rank holds a slice, and their temporary gathering."""
