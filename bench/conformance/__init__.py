"""The contract of methods and tasks, which the tests of a plugin check."""

from bench.conformance.method_verdicts import Verdict, keeps_contract, verdicts

__all__ = ["Verdict", "keeps_contract", "verdicts"]
