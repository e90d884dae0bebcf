"""Programs that are run by hand, each with its command in the Makefile."""
