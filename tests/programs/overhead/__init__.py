"""Measures the cost of the harness: ``make overhead``, on a quiet machine, writes results/overhead/report."""
