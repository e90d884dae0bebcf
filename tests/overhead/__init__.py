"""What the harness itself costs: ``make overhead`` measures it, on a quiet machine, and writes results/overhead/."""
