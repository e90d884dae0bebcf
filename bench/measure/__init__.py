"""Time, memory, energy and provenance of a process, and how it ends."""
