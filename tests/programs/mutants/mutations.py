"""The faults that a file can get: cosmic-ray's, one or two for each operator, and statements that are left out."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.plugins import get_operator

Position = tuple[int, int]  # line from 1, column from 0

# A comparison's other side of its border and its contrary. Of the eleven that cosmic-ray puts for a "+", one is enough.
_CHOSEN = (
    *(
        f"ReplaceBinaryOperator_{pair}"
        for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_FloorDiv", "Pow_Mul")
    ),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("BitOr_BitAnd", "BitAnd_BitOr", "BitXor_BitAnd")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")),
    *(f"ReplaceUnaryOperator_{kind}" for kind in ("USub_UAdd", "Delete_Not", "Delete_Invert")),
    *("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak"),
    *("ExceptionReplacer", "NumberReplacer", "ZeroIterationForLoop"),
)


# Names of arguments that change nothing: an assertion of zip, and how JSON files are laid out.
_WITHOUT_EFFECT = ("strict", "indent")


class LeaveOut(Operator):  # type: ignore[misc]
    """Leaves out a call whose value nobody takes, a ``del``, an ``x.y = z``, an ``x[y] = z`` or an ``x += y``."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
        if node.type == "simple_stmt" and _can_be_left_out(node.children[0]):
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        first = node.children[0].get_first_leaf()
        node.children[0] = parso.python.tree.Keyword("pass", first.start_pos, prefix=first.prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("f(x)\n", "pass\n"), Example("x.y = 1\n", "pass\n"), Example("x += 1\n", "pass\n"))


def _can_be_left_out(statement: Any) -> bool:
    if statement.type == "expr_stmt":
        target, assigned = statement.children[:2]
        return target.type == "atom_expr" or (assigned.type == "operator" and assigned.value != "=")
    if statement.type == "atom_expr":
        last = statement.children[-1]
        return last.type == "trailer" and last.children[0].value == "("
    return statement.type == "del_stmt"


@dataclass(frozen=True)
class Mutant:
    """One fault in one file."""

    file: str  # relative to the repository
    function: str  # the functions and classes around it; "" for the module
    before: str  # the lines that differ, without the white space around them
    after: str
    line: int = field(compare=False)
    lines: tuple[int, ...] = field(compare=False)  # of the statement
    source: str = field(compare=False, repr=False)  # of the whole file with the fault

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.file, self.function, self.before, self.after


def sample(source: str, file: str, size: int | None, seed: str) -> tuple[list[Mutant], int]:
    """So many faults of a file, drawn by a seed, in the order of their lines; and how many it could get.

    Some places get none: annotations and decorators, which declare; what is raised, whose words are for people; the
    arguments of :data:`_WITHOUT_EFFECT`; crash points, at which only ``make chaos`` does something.
    """
    places, tree = _Places(source), get_ast(source)
    operators = [*(get_operator(f"core/{name}")() for name in _CHOSEN), LeaveOut()]
    candidates: list[tuple[Operator, int, Position]] = []
    for operator in operators:
        positions = (start for node in ast_nodes(tree) for start, _ in operator.mutation_positions(node))
        candidates += [
            (operator, occurrence, start)
            for occurrence, start in enumerate(positions)
            if not places.is_left_alone(start)
        ]
    possible = len(candidates)
    random.Random(f"{seed} {file}").shuffle(candidates)
    found: dict[str, Mutant] = {}
    while candidates and (size is None or len(found) < size):
        operator, occurrence, start = candidates.pop()
        mutated = mutate_code(source, operator, occurrence)
        if mutated is None or mutated in found or not _is_code(mutated):
            continue
        before, after = _difference(source, mutated)
        found[mutated] = Mutant(
            file, places.function(start[0]), before, after, start[0], places.statement(start[0]), mutated
        )
    return sorted(found.values(), key=lambda one: (one.line, one.after)), possible


def _is_code(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def _difference(source: str, mutated: str) -> tuple[str, str]:
    """The lines that differ, of both."""
    old, new = source.splitlines(), mutated.splitlines()
    start = next(index for index, (one, other) in enumerate(zip(old, new, strict=False)) if one != other)
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    return _words(old[start : len(old) - end]), _words(new[start : len(new) - end])


def _words(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


class _Places:
    """Which statement and function a line belongs to."""

    def __init__(self, source: str) -> None:
        self._left_alone: list[tuple[Position, Position]] = []
        self._statements: list[range] = []
        self._functions: list[tuple[range, str]] = []
        self._visit(ast.parse(source), "")

    def _visit(self, node: ast.AST, around: str) -> None:
        for child in ast.iter_child_nodes(node):
            inside = around
            if isinstance(child, ast.stmt):
                body = getattr(child, "body", None) or getattr(child, "cases", None)
                last = max(child.lineno, _first_line(body[0]) - 1) if body else child.end_lineno or child.lineno
                self._statements.append(range(_first_line(child), last + 1))
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inside = f"{around}.{child.name}".lstrip(".")
                self._functions.append((range(_first_line(child), (child.end_lineno or child.lineno) + 1), inside))
            left_alone: list[Any] = [getattr(child, "annotation", None), getattr(child, "returns", None)]
            if isinstance(child, ast.Raise) or (isinstance(child, ast.Call) and ast.unparse(child.func) == "reached"):
                left_alone.append(child)
            if isinstance(child, ast.keyword) and child.arg in _WITHOUT_EFFECT:
                left_alone.append(child.value)
            for place in (*left_alone, *getattr(child, "decorator_list", ())):
                if place is not None:
                    start = (place.lineno, place.col_offset)
                    self._left_alone.append((start, (place.end_lineno, place.end_col_offset)))
            self._visit(child, inside)

    def is_left_alone(self, position: Position) -> bool:
        return any(start <= position < end for start, end in self._left_alone)

    def function(self, line: int) -> str:
        return min(((len(lines), name) for lines, name in self._functions if line in lines), default=(0, ""))[1]

    def statement(self, line: int) -> tuple[int, ...]:
        return tuple(
            min((lines for lines in self._statements if line in lines), key=len, default=range(line, line + 1))
        )


def _first_line(node: Any) -> int:
    decorators = getattr(node, "decorator_list", ())
    lines: list[int] = [one.lineno for one in decorators]
    return min([*lines, getattr(node, "lineno", None) or node.pattern.lineno])
