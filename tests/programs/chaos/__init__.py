"""Causes faults on purpose and counts what is lost: ``make chaos`` runs all of them, ``make test`` the quick ones."""
