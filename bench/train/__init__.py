"""The one training loop, with its engines, loss, optimiser and checkpoints."""
