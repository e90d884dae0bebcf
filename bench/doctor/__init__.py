"""``tuneoff doctor``: whether this machine, and a cluster, can run trials, and what to do where they cannot."""
