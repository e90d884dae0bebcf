"""The race against Hugging Face peft, transformers and Ray Tune: ``make race``. No part of the unit tests.

Every number comes from one run on one machine: the same weights, the same batches, the same start of the adapter, the
same threads. tests/programs/test_race.py holds the contenders to equal losses and equal texts on tiny models.
"""
