"""Frozen linear layers in four or eight bits, which methods meet as they meet others."""
