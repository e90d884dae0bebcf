"""One `tuneoff run`: rounds, schedule, stages, observers, trackers, mirror."""
