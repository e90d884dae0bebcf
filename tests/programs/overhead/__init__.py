"""What the harness itself costs: ``make overhead``, on a quiet machine, writes results/overhead/report/overhead.md."""
