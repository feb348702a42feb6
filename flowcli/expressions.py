"""Arithmetic expressions of named variables, given in a config: a walk over known nodes, no eval.

Every value carries its derivative with respect to t (forward mode, by the chain rule).
"""

import ast
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from flowcli.errors import UserError

Dual = tuple[Tensor, Tensor]
"""A value and its derivative with respect to t, of one shape."""
Expression = Callable[[Mapping[str, Dual]], Dual]
"""From the variables by name to the value of the expression."""

_LEGENDS = {"u": "u = 1 - t"}
_DEEPEST = 50

_FUNCTIONS: dict[str, Callable[[Tensor], Dual]] = {
    "sqrt": lambda x: (x.sqrt(), 0.5 / x.sqrt()),
    "exp": lambda x: (x.exp(), x.exp()),
    "log": lambda x: (x.log(), 1 / x),
    "sin": lambda x: (x.sin(), x.cos()),
    "cos": lambda x: (x.cos(), -x.sin()),
    "tan": lambda x: (x.tan(), 1 + x.tan() ** 2),
    "tanh": lambda x: (x.tanh(), 1 - x.tanh() ** 2),
}
"""Each function's value and derivative."""


def _power(x: Dual, y: Dual) -> Dual:
    value = x[0] ** y[0]
    slope = y[0] * x[0] ** (y[0] - 1) * x[1]
    moving = y[1] != 0  # log x is needed only where the exponent moves: t**2 at t = 0 has none
    return value, slope + torch.where(moving, value * torch.where(moving, x[0], 1).log() * y[1], 0)


_OPERATIONS: dict[type[ast.operator], Callable[[Dual, Dual], Dual]] = {
    ast.Add: lambda x, y: (x[0] + y[0], x[1] + y[1]),
    ast.Sub: lambda x, y: (x[0] - y[0], x[1] - y[1]),
    ast.Mult: lambda x, y: (x[0] * y[0], x[1] * y[0] + x[0] * y[1]),
    ast.Div: lambda x, y: (x[0] / y[0], (x[1] - x[0] / y[0] * y[1]) / y[0]),
    ast.Pow: _power,
}


def parse(name: str, text: object, variables: Sequence[str], place: str) -> Expression:
    """Turn a text into a function of its variables; a variable `u` is 1 - t.

    Legal are numbers, the variables, pi, + - * / **, brackets and sqrt, exp, log, sin, cos, tan, tanh.
    name and place are for messages: `name: ... is not allowed in place`.

    Raises:
        UserError: what is no expression, a name or an operation that is not listed, more than 50 nested brackets.
    """
    try:
        tree = ast.parse(str(text), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{name}={text!r} is not an expression of {variables[0]}") from error
    return _Parser(name, tuple(variables), place).node(tree, depth=0)


class _Parser:
    def __init__(self, name: str, variables: tuple[str, ...], place: str) -> None:
        self.name, self.variables, self.place = name, variables, place

    def node(self, node: ast.expr, depth: int) -> Expression:
        """The function that a node stands for."""
        if depth > _DEEPEST:
            raise UserError(f"{self.name}: the expression is nested more than {_DEEPEST} deep")
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                if abs(value) > 1e300:  # compared before it is converted, which long integers do not survive
                    raise UserError(f"{self.name}: a number is too large")
                return _constant(float(value))
            case ast.Name(id="pi"):
                return _constant(math.pi)
            case ast.Name(id=variable) if variable in self.variables:
                return lambda at: at[variable]
            case ast.UnaryOp(op=ast.UAdd(), operand=inner):
                return self.node(inner, depth + 1)
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return self.node(ast.BinOp(ast.Constant(0), ast.Sub(), inner), depth + 1)
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATIONS:
                apply = _OPERATIONS[type(operator)]
                first, second = self.node(left, depth + 1), self.node(right, depth + 1)
                return lambda at: apply(first(at), second(at))
            case ast.Call(func=ast.Name(id=function), args=[argument], keywords=[]) if function in _FUNCTIONS:
                return _chain(_FUNCTIONS[function], self.node(argument, depth + 1))
        legends = ", ".join(_LEGENDS.get(variable, variable) for variable in self.variables)
        legal = f"numbers, {legends}, pi, + - * / **, {', '.join(_FUNCTIONS)}"
        raise UserError(f"{self.name}: {ast.unparse(node)!r} is not allowed in {self.place}; legal are {legal}")


def _constant(value: float) -> Expression:
    def constant(at: Mapping[str, Dual]) -> Dual:
        like, _ = next(iter(at.values()))
        return torch.full_like(like, value), torch.zeros_like(like)

    return constant


def _chain(function: Callable[[Tensor], Dual], inner: Expression) -> Expression:
    def chain(at: Mapping[str, Dual]) -> Dual:
        value, slope = inner(at)
        outer, outer_slope = function(value)
        return outer, outer_slope * slope

    return chain
