"""The verbs of the command line, a module for each group. They parse and delegate."""
