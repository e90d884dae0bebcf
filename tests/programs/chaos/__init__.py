"""Faults on purpose: ``make chaos`` runs all of them and prints what was lost, ``make test`` the quick ones."""
