"""Means, intervals and tests of significance. Imports neither torch nor ray, and nothing before it is used.

Seeds are paired across methods and vary initialisation, data order and dropout together. A claim about two methods has
to hold over seeds and over test sources: see :mod:`bench.statistics.differences`.
"""
