"""A plugin of Tuneoff in a package of its own."""
