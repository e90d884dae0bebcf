"""Counts drivers that finish their work and then end badly: by a signal, late, or with a wrong exit code."""
