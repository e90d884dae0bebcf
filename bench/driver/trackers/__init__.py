"""Trackers: programs outside that show a sweep while it runs, behind one small interface."""
