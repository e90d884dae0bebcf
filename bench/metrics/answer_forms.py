"""Forms in which answers are compared: the exact value of a number, and a text without what means nothing."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_CURRENCIES = "$€£¥₹"
_UNITS = str.maketrans("", "", f"{_CURRENCIES}%_ \t\n")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_DASHES = str.maketrans(dict.fromkeys("\u2010\u2012\u2013\u2212", "-"))
# Powers have at most so many digits, and so have exponents of ten.
_MOST_DIGITS = 400

# Thousands in groups of three, or as in India.
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)|\d+)"
_UNSIGNED = rf"(?:{_DIGITS}(?:\.\d+)?(?:[eE][-+]?\d+)?|(?<![\w.])\.\d+)"
# What is one number, without units and spaces, and what divides two of them, glued or not.
_WHOLE = re.compile(rf"[-+]?{_UNSIGNED}(?:/[-+]?(?:{_DIGITS}(?:\.\d+)?|\.\d+))?")
_APART = re.compile(rf"\d(?:[{_CURRENCIES}%\s]+,?|,(?=[{_CURRENCIES}%\s]))[{_CURRENCIES}%\s]*\d")
# A sign counts unless a letter, digit, dot or closing bracket is right before it, where it is a minus or a hyphen.
_NUMBER = re.compile(
    rf"(?:(?<![\w.)\]}}])([-+])[{_CURRENCIES}]?)?(?:(\d+) +(?=\d+\s*/\s*\d))?({_UNSIGNED})(?:\s*/\s*(\d+(?:\.\d+)?))?"
)
_SPACED_THOUSANDS = re.compile(r"(?<=\d) (?=\d{3}(?!\d))")

_SPACING = re.compile(r"\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])|(?<!\\)\\[!,;:> ]|(?<=\d)~(?=\d)")
_UPRIGHT_WORDS = re.compile(r"\\(?:text|mbox|textrm|textbf|textit|mathrm|mathbf|mathit|operatorname)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*([^{}]*?)\s*\}|(\w))\s*(?:\{\s*([^{}]*?)\s*\}|(\w))")
_VULGAR_FRACTIONS = re.compile("[\u00bc-\u00be\u2150-\u215e\u2189]")
_RAISED = re.compile("[⁺⁻]?[\u00b2\u00b3\u00b9\u2070\u2074-\u2079]+")
_LOWERED = re.compile("[\u2080-\u2089]+")
_SUBSCRIPT = re.compile(r"(?<=[A-Za-z0-9}])_(?:\w+|\{[^{}]*\})")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?")
_OF_TEN = re.compile(
    r"(?<![\w.])(\d+(?:\.\d+)?)\s*(?:\\times|\\cdot|[x\u00d7*\u00b7\u22c5])\s*10\s*\^\s*\{?\s*([-+]?\d{1,9})\s*\}?(?!\.?\d)"
)
_POWER = re.compile(r"(?<![\w.,^)\]}])(\d{1,40})\s*\^\s*(?:\{\s*(-?\d{1,3})\s*\}|(-?\d{1,3}))(?!\.?\d)")
# Of a unit or a variable: neither m^2 nor m2 contains the number 2.
_POWER_OF_LETTERS = re.compile(
    r"(?<=[A-Za-z}°)])\s*\^\s*(?:\{[^{}]*\}|[-+]?\w+)"
    r"|(?:(?<=(?<![A-Za-z])(?:[cdkm]m|ft|in|yd))|(?<=(?<![A-Za-z])m))[23](?!\d)"
)
_THIN_THOUSANDS = re.compile("(?<=\\d)[\u00a0\u2007-\u2009\u202f](?=\\d{3}(?!\\d))")
# Behind a plain space, groups of which one begins with 0, as no number does: 12 000 is one, 5 100 may be two.
_PLAINLY_SPACED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?: \d{3})*? 0\d\d(?: \d{3})*(?!\d)")
_OTHER_THOUSANDS = re.compile(r"(?<=\d)(?:['\u2019_]|\{,\})(?=\d{3}(?!\d))")
# What has one of these is no number that digits say: two roots of which the last digit is the same are not equal.
_NO_NUMBER = re.compile(
    r"\\(?:sqrt|[dtc]?frac|pi|infty|log|ln|sin|cos|tan|pm|begin|binom|overline|cup|cap|emptyset)(?![A-Za-z])|[√π∞±]"
)

_AROUND_SIGNS = re.compile(r"\s*([-+*/=<>,()\[\]{}^|:])\s*")
_LEADING = re.compile(r"\A(?:[ ,;:!?\"'`*]|\.(?!\d))+")
_TRAILING = re.compile(r"(?:[ .,;:?\"'`*]|(?<!\d)!)+\Z")


def number(text: str) -> Fraction | None:
    r"""The value of a number, exactly: 1,234.50, -3, 50 %, -$7, 1/2, 2 1/2, \frac{1}{2}, 3 \times 10^4, 1e3.

    Of several words or numbers the last one counts, and behind an equals sign what stands there. A comma is one of
    thousands, or divides numbers: of 3, 4 and of 2,5 the last one counts. A root, or another formula whose value digits
    do not say, is none.
    """
    upright = _upright(text)
    left, equals, right = upright.rpartition("=")
    if equals and not re.search(r"\d", right):  # 5 = x
        right = left
    if _NO_NUMBER.search(right):
        return None
    right = _SPACED_THOUSANDS.sub("", right)
    bare = right.translate(_UNITS).rstrip(".")
    if not _APART.search(right) and _WHOLE.fullmatch(bare) and (whole := _fraction(bare)) is not None:
        return whole
    return next(reversed([value for value, _ in _numbers(right)]), None)


def last_number(text: str) -> str | None:
    """The last number in a text, as digits say it."""
    return next(reversed([written for _, written in _numbers(_upright(text))]), None)


def _numbers(upright: str) -> list[tuple[Fraction | None, str]]:
    """The value of each number in a text, and how it is written. What is divided by zero has none."""
    found = []
    for match in _NUMBER.finditer(upright):
        sign, whole, over, under = match.groups(default="")
        value, written = _fraction(f"{over}/{under}" if under else over), f"{over}/{under}" if under else over
        if whole and value is not None and value < 1 and (ones := _fraction(whole)) is not None:
            value, written = ones + value, f"{whole} {written}"
        elif whole:  # two numbers, of which the sign belongs to the first
            sign = ""
        found.append((-value if sign == "-" and value is not None else value, f"{sign}{written}"))
    return found


def _fraction(text: str) -> Fraction | None:
    over, slash, under = text.replace(",", "").partition("/")
    try:
        exponent = int(re.sub(r".*[eE]", "", over)) if re.search("[eE]", over) else 0
        if len(text) > _MOST_DIGITS or abs(exponent) > _MOST_DIGITS:
            return None
        return Fraction(over) / (Fraction(under) if slash else 1)
    except (ValueError, ZeroDivisionError):
        return None


def _upright(text: str) -> str:
    r"""The text with ASCII signs and fractions, powers of numbers as their values, and without those of letters.

    m² and x_2 do not contain the number 2, nor 10_2 another one than 10; 2½ is 2 1/2, and 12 000 is 12000.
    """
    text = _without_tex(_THIN_THOUSANDS.sub("", text))
    text = _OTHER_THOUSANDS.sub("", text.replace("\\$", "$").replace("\\%", "%"))
    text = _PLAINLY_SPACED.sub(lambda found: found[0].replace(" ", ""), text)
    text = _FRACTION.sub(_in_a_line, text)
    text = _DEGREES.sub("", _SUBSCRIPT.sub("", text))
    text = _OF_TEN.sub(r"\1e\2", text)
    return _POWER_OF_LETTERS.sub("", _POWER.sub(_power, text))


def plain(text: str) -> str:
    r"""The text without case, punctuation around it, TeX's spacing, and white space beside signs.

    What TeX writes in several ways is the same: ``\dfrac12`` is ``\frac{1}{2}``, and ``x^{2}`` is ``x^2`` and ``x²``.
    """
    text = _DEGREES.sub("°", re.sub(r"\\?\$", "", _without_tex(text))).replace("\\%", "%")
    text = _FRACTION.sub(lambda found: "\\frac{{{}}}{{{}}}".format(*_parts(found)), text)
    text = re.sub(r"\^\s*\{\s*(\w)\s*\}", r"^\1", text)
    text = _AROUND_SIGNS.sub(r"\1", " ".join(text.casefold().split()))
    return _TRAILING.sub("", _LEADING.sub("", text))


def _without_tex(text: str) -> str:
    """The text with Unicode's plainest signs, and without TeX's spacing and kinds of letters."""
    text = _VULGAR_FRACTIONS.sub(lambda one: f" {unicodedata.normalize('NFKC', one[0])} ", text)
    text = _RAISED.sub(lambda one: f"^{{{one[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _LOWERED.sub(lambda one: f"_{{{unicodedata.normalize('NFKC', one[0])}}}", text)
    text = unicodedata.normalize("NFKC", text).replace("\u2044", "/").translate(_DASHES)
    return _UPRIGHT_WORDS.sub(r"\1", _SPACING.sub("", text))


def _parts(fraction: re.Match[str]) -> tuple[str, str]:
    over, digit, under, other_digit = fraction.groups(default="")
    return over or digit, under or other_digit


def _in_a_line(fraction: re.Match[str]) -> str:
    """A fraction of numbers as 1/2, behind a space that keeps it from a whole number; others as they are."""
    over, under = _parts(fraction)
    if not re.fullmatch(rf"[-+]?{_UNSIGNED}", over) or not re.fullmatch(_UNSIGNED, under):
        return fraction[0]
    before = fraction.string[: fraction.start()].rstrip()
    space = " " if before[-1:].isdecimal() else ""
    return f"{space}{over}/{under}".replace(",", "")


def _power(found: re.Match[str]) -> str:
    base, exponent = int(found[1]), int(found[2] or found[3])
    if len(found[1]) * abs(exponent) > _MOST_DIGITS or (not base and exponent < 0):
        return found[0]
    return str(Fraction(base) ** exponent)
