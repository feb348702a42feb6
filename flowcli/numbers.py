"""How numbers and settings are written for people."""

import math

Scalar = float | int | str | bool | None

MISSING = "–"
LONGEST_VALUE = 24
SMALLEST_ERROR = 1e-300
"""Below it, 10 to the power of its exponent is 0."""


def number_of(value: object) -> float | None:
    """A finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, float | int):
        return None
    try:
        number = float(value)
    except OverflowError:  # JSON has whole numbers of any length
        return None
    return number if math.isfinite(number) else None


def format_value(value: Scalar, error: Scalar = None) -> str:
    """A metric for people: `2.6318 ± 0.0042`, with as many digits as the error warrants; `–` where there is none."""
    number, spread = number_of(value), number_of(error)
    if number is None or isinstance(value, bool):
        return text_of(value)
    if spread is None or spread < SMALLEST_ERROR:
        return f"{value:,}" if isinstance(value, int) else plain(number)
    return with_error(number, spread)


def plain(number: float) -> str:
    """Four digits, but no exponent for whole numbers in the thousands."""
    return f"{number:,.0f}" if 1e4 <= abs(number) < 1e7 else f"{number:.4g}"


def text_of(value: object) -> str:
    """A setting or a metric that is no number, on one line and free of control characters."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(text_of(item) for item in value)}]"
    return "".join(letter if letter.isprintable() else "�" for letter in str(value))


def shortened(text: str) -> str:
    """The end of a long value: of a path it tells most."""
    return text if len(text) <= LONGEST_VALUE else f"…{text[1 - LONGEST_VALUE :]}"


def signed(value: float, width: float) -> str:
    """A difference with its sign, and as many digits as an interval of this width warrants: two of it."""
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "+∞" if value > 0 else "−∞"
    usable = math.isfinite(width) and width > SMALLEST_ERROR
    decimals = max(0, min(10, 1 - math.floor(math.log10(width)))) if usable else 4
    return f"{value:+.{decimals}f}".replace("-", "−")


def with_error(value: float, stderr: float | None = None) -> str:
    """A value with the digits that its error leaves, e.g. 2.632 ± 0.004 or (1.3 ± 0.8)e-5."""
    if stderr is None or not math.isfinite(stderr) or stderr <= 0:
        return f"{value:.4g}"
    largest = max(abs(value), stderr)
    if largest < 1e-3:
        exponent = math.floor(math.log10(largest))
        scale = 10.0**exponent
        return f"({with_error(value / scale, stderr / scale)})e{exponent}"
    digits = max(0, min(12, 1 - math.floor(math.log10(stderr))))
    return f"{value:.{digits}f} ± {stderr:.{digits}f}"


def duration(seconds: float) -> str:
    """A time as 45 s, 3:05 min or 2:10 h."""
    whole = max(0, round(seconds))
    if whole < 100:
        return f"{whole} s"
    large, unit = (whole, "min") if whole < 3600 else (whole // 60, "h")
    return f"{large // 60}:{large % 60:02d} {unit}"
