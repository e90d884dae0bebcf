"""What one rank process does."""
