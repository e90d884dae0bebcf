"""Simulates how often tests call equal methods different, and how often they find a real difference."""
