"""Errors that are written for people, and the checks that constructors share."""

import math
from collections.abc import Iterable


class UserError(ValueError):
    """The user's input is wrong: one line on stderr, exit status 2, nothing written."""


class JobError(RuntimeError):
    """A job failed in a way that only the job could find out: one line on stderr, exit status 1."""


class Interrupted(BaseException):
    """A signal ended the job in good order; the message says how to go on. Exit status 128 + signum.

    Not an Exception: no library may take it for a failure of its own, and no launcher start the next job.
    """

    def __init__(self, signum: int, message: str) -> None:
        """Take the signal's number and one line for the user."""
        super().__init__(signum, message)  # both, so that it survives the way out of a worker process
        self.signum = signum
        self.message = message

    def __str__(self) -> str:
        """Only the message."""
        return self.message


LARGEST = 2**63 - 1
"""The largest whole number that a tensor's size, a seed or a count can be."""


def integer(name: str, value: object, *, minimum: int, maximum: int | None = None) -> int:
    """Return value as an int; 1e4 counts as one.

    Raises:
        UserError: naming the parameter and its legal range.
    """
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if maximum is None and whole and value > LARGEST:  # type: ignore[operator]
        maximum = LARGEST
    legal = f"a whole number >= {minimum}" + (f" and <= {maximum}" if maximum is not None else "")
    if isinstance(value, bool) or not whole or value < minimum or (maximum is not None and value > maximum):  # type: ignore[operator]
        raise UserError(f"{name} must be {legal}, got {value!r}")
    return int(value)  # type: ignore[call-overload]


def number(
    name: str,
    value: object,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
) -> float:
    """Return value as a finite float inside its bounds (minimum and maximum belong to the range).

    Raises:
        UserError: naming the parameter and its legal range.
    """
    bounds = ((">=", minimum), (">", above), ("<=", maximum), ("<", below))
    limits = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
    legal = f"a finite number {limits}".strip()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{name} must be {legal}, got {value!r}")
    low = (minimum is not None and value < minimum) or (above is not None and value <= above)
    high = (maximum is not None and value > maximum) or (below is not None and value >= below)
    if low or high:
        raise UserError(f"{name} must be {legal}, got {value!r}")
    return float(value)


def choice(name: str, value: object, options: Iterable[str]) -> str:
    """Return value if it is one of the options.

    Raises:
        UserError: listing the options.
    """
    legal = list(options)
    if value not in legal:
        raise UserError(f"{name} must be one of {', '.join(legal)}, got {value!r}")
    return str(value)


def boolean(name: str, value: object) -> bool:
    """Return value if it is true or false.

    Raises:
        UserError: otherwise; "yes" and 1 are not taken for a truth value.
    """
    if not isinstance(value, bool):
        raise UserError(f"{name} must be true or false, got {value!r}")
    return value


def boolean_or_auto(name: str, value: object) -> bool | str:
    """Return value if it is true, false or "auto".

    Raises:
        UserError: otherwise.
    """
    if isinstance(value, bool):
        return value
    if value != "auto":
        raise UserError(f"{name} must be auto, true or false, got {value!r}")
    return "auto"
