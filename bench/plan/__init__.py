"""What a trial will cost."""
