"""The base model: loading it, text to batches, stored adapters."""
