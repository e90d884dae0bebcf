"""The harness: what to compare, how to run it, what came of it."""
