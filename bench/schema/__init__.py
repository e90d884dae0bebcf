"""Which values travel: trial, sweep, search space, record; and how bad input is told."""
