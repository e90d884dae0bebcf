"""Would the tests notice? Small faults are put into the code, one at a time, and the tests of its package run.

cosmic-ray makes the faults ("mutants"). They are tried in forks of a process that has imported everything, each by the
tests that reach its line.
"""
