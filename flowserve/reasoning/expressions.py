"""The normal form of simple expressions: equal strings mean equal values; unequal strings of one value can remain.

A sum of monomials with rational coefficients; a monomial is a product of atoms to rational powers. Atoms are letters, primes
under a root, pi, and whatever cannot be taken apart (`sin(x)`, a sum in a denominator). So `1/2`, `0.5` and `\\frac12` are one,
as are `\\frac{1}{\\sqrt3}` and `\\frac{\\sqrt3}{3}`, `2(x+1)` and `2x + 2`. No identity of functions is applied.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from math import comb, factorial, isqrt

Monomial = tuple[tuple[str, Fraction], ...]
"""Atoms in order of name, with their powers, none of them 0; a prime's power is between 0 and 1."""
Sum = dict[Monomial, Fraction]
"""Coefficient by monomial, none of them 0. The number 0 is the empty sum."""

MAX_LENGTH = 400
"""Longer texts are not parsed."""
MAX_DEPTH = 24
MAX_TERMS = 64
MAX_BITS = 1024
"""Whole numbers and powers beyond are not computed."""
_TRIAL_DIVISORS = 1000
"""What is left of a number under a root after division by smaller ones stays one atom."""

_POSITIVE = ("pi", "e")
_FUNCTIONS = frozenset(
    ("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh")
    + ("log", "ln", "lg", "exp", "max", "min", "gcd", "lcm", "det", "deg", "arg")
)
_SYMBOLS = frozenset(
    (
        "pi",
        "infty",
        "ell",
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "varepsilon",
        "zeta",
        "eta",
        "theta",
        "vartheta",
    )
    + (
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
        "rho",
        "sigma",
        "tau",
        "upsilon",
        "phi",
        "varphi",
        "chi",
        "psi",
        "omega",
    )
    + ("Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega")
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_SCIENTIFIC = re.compile(r"(\d+(?:\.\d+)?|\.\d+)[eE]([+-]?\d{1,3})(?![\d.])")
_MIXED = re.compile(
    r"(\d+)\s*\\frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))|(\d+)\s+(\d+)\s*/\s*(\d+)(?!\d)"
)
_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_WORD = re.compile(r"sqrt|pi(?![a-zA-Z])|[a-zA-Z]")
_SUBSCRIPT = re.compile(r"_\s*(?:\{\s*([\w ,]+?)\s*\}|(\w))")


class NotAnExpression(ValueError):
    """The text is not one this parser knows; nothing is said about its value."""


def normal_form(text: str) -> str:
    """Of an expression in LaTeX or plain notation. Raises NotAnExpression."""
    return written(parsed(text))


def parsed(text: str) -> Sum:
    """Raises NotAnExpression."""
    if len(text) > MAX_LENGTH:
        raise NotAnExpression(text[:40])
    parser = _Parser(text.replace("**", "^"))
    value = parser.sum()
    if parser.ahead():
        raise NotAnExpression(text)
    return value


def written(value: Sum) -> str:
    """As text, equal for equal sums."""
    terms = [_term(monomial, value[monomial]) for monomial in sorted(value)]
    return "+".join(terms) if terms else "0"


def scaled_to_one(value: Sum) -> Sum:
    """Divided by the coefficient of its last monomial: what an equation `value = 0` says, whatever it was multiplied by."""
    if not value:
        return value
    lead = value[max(value)]
    return {monomial: coefficient / lead for monomial, coefficient in value.items()}


def difference(left: Sum, right: Sum) -> Sum:
    return _add(left, _multiply(_number(Fraction(-1)), right))


def _term(monomial: Monomial, coefficient: Fraction) -> str:
    atoms = [atom if power == 1 else f"{atom}^({power})" for atom, power in monomial]
    return "*".join([str(coefficient), *atoms])


def _number(value: Fraction) -> Sum:
    return {(): value} if value else {}


def _atom(name: str) -> Sum:
    return {((name, Fraction(1)),): Fraction(1)}


def _constant(value: Sum) -> Fraction | None:
    """The number that the sum is, None if it is more than a rational number."""
    if not value:
        return Fraction(0)
    return value.get(()) if len(value) == 1 else None


def _add(left: Sum, right: Sum) -> Sum:
    total = dict(left)
    for monomial, coefficient in right.items():
        total[monomial] = total.get(monomial, Fraction(0)) + coefficient
    return {monomial: _within(coefficient) for monomial, coefficient in total.items() if coefficient}


def _within(number: Fraction) -> Fraction:
    if number.numerator.bit_length() + number.denominator.bit_length() > 2 * MAX_BITS:
        raise NotAnExpression("a number of too many digits")
    return number


def _multiply(left: Sum, right: Sum) -> Sum:
    if len(left) * len(right) > MAX_TERMS:
        raise NotAnExpression("too many terms")
    product: Sum = {}
    for one, one_coefficient in left.items():
        for other, other_coefficient in right.items():
            monomial, factor = _collected([*one, *other])
            product = _add(product, {monomial: one_coefficient * other_coefficient * factor})
    return product


def _collected(powers: list[tuple[str, Fraction]]) -> tuple[Monomial, Fraction]:
    """One power per atom, and the rational number that whole powers of primes made."""
    totals: dict[str, Fraction] = {}
    for atom, power in powers:
        totals[atom] = totals.get(atom, Fraction(0)) + power
    factor = Fraction(1)
    for atom, power in totals.items():
        if atom.isdigit():
            whole = power.numerator // power.denominator
            factor *= _whole_power(Fraction(atom), whole)
            totals[atom] = power - whole
    return tuple(sorted((atom, power) for atom, power in totals.items() if power)), factor


def _whole_power(base: Fraction, exponent: int) -> Fraction:
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits * abs(exponent) > MAX_BITS or (not base and exponent < 0):
        raise NotAnExpression(f"{base}^{exponent}")
    return base**exponent


def _raise(base: Sum, exponent: Sum) -> Sum:
    power = _constant(exponent)
    if power is None:
        return _atom(f"({written(base)})^({written(exponent)})")
    if not base and power <= 0:
        raise NotAnExpression("a power of zero")
    if len(base) == 1:
        return _raise_monomial(base, power)
    if power.denominator == 1 and 0 <= power <= 8:
        product = _number(Fraction(1))
        for _ in range(int(power)):
            product = _multiply(product, base)
        return product
    return _raise_many(base, power)


def _raise_many(base: Sum, power: Fraction) -> Sum:
    """A sum that is not multiplied out becomes an atom; of a whole power its scale is taken out first."""
    if not base:
        return {}
    if power.denominator != 1:
        return {((f"({written(base)})", power),): Fraction(1)}
    scale = base[max(base)]
    return {((f"({written(scaled_to_one(base))})", power),): _whole_power(scale, int(power))}


def _raise_monomial(base: Sum, power: Fraction) -> Sum:
    ((monomial, coefficient),) = base.items()
    whole = power.denominator == 1
    if not whole and not all(atom.isdigit() or atom in _POSITIVE or one == 1 for atom, one in monomial):
        return {((f"({written(base)})", power),): Fraction(1)}
    raised = [(atom, one * power) for atom, one in monomial]
    if whole:
        collected, factor = _collected(raised)
        return {collected: factor * _whole_power(coefficient, int(power))}
    root = _root(coefficient, power)
    collected, factor = _collected(raised)
    return _multiply(root, {collected: factor})


def _root(number: Fraction, power: Fraction) -> Sum:
    """A rational number to a power that is not whole, as primes under roots; the square root of -1 is the letter i."""
    sign = _number(Fraction(1))
    if number < 0:
        if power.denominator % 2:
            sign = _number(Fraction(-1 if power.numerator % 2 else 1))
        elif power.denominator == 2:
            sign = _raise_monomial(_atom("i"), Fraction(power.numerator))
        else:
            raise NotAnExpression(f"({number})^({power})")
    powers = [(str(prime), times * power) for prime, times in _factors(abs(number.numerator))]
    powers += [(str(prime), -times * power) for prime, times in _factors(number.denominator)]
    monomial, factor = _collected(powers)
    return _multiply(sign, {monomial: factor})


def _factors(number: int) -> list[tuple[int, int]]:
    """Primes and how often; a large rest counts as a prime unless it is a square."""
    found: list[tuple[int, int]] = []
    divisor = 2
    while divisor * divisor <= number and divisor < _TRIAL_DIVISORS:
        times = 0
        while number % divisor == 0:
            number, times = number // divisor, times + 1
        if times:
            found.append((divisor, times))
        divisor += 1
    if number > 1:
        root = isqrt(number)
        found.append((root, 2) if root * root == number else (number, 1))
    return found


@dataclass
class _Parser:
    """Recursive descent over the text. LaTeX lets an argument be one character, so characters are read as needed."""

    text: str
    at: int = 0
    depth: int = 0

    def ahead(self) -> str:
        """The next character that is not a space, empty at the end."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]

    def sum(self) -> Sum:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotAnExpression("too deep")
        total = self._product()
        while self.ahead() in ("+", "-"):
            total = _add(total, self._product())
        self.depth -= 1
        return total

    def _product(self) -> Sum:
        sign = 1
        while self.ahead() in ("+", "-"):
            sign *= -1 if self.ahead() == "-" else 1
            self.at += 1
        product = _multiply(_number(Fraction(sign)), self._factor())
        while True:
            operator = self._operator()
            if operator is None:
                return product
            factor = self._signed_factor() if operator else self._factor()
            product = _multiply(product, _raise(factor, _number(Fraction(-1))) if operator == "/" else factor)

    def _operator(self) -> str | None:
        """`*`, `/`, the empty operator of factors that stand side by side, or None: the product is over."""
        for written_as, operator in (("\\cdot", "*"), ("\\times", "*"), ("\\div", "/"), ("*", "*"), ("/", "/")):
            self.ahead()
            if self.text.startswith(written_as, self.at):
                self.at += len(written_as)
                return operator
        return "" if self.ahead() and self.ahead() not in "+-)]}|," else None

    def _signed_factor(self) -> Sum:
        if self.ahead() != "-":
            return self._factor()
        self.at += 1
        return _multiply(_number(Fraction(-1)), self._factor())

    def _factor(self) -> Sum:
        value = self._base()
        while self.ahead() == "!":
            self.at += 1
            value = _factorial(value)
        if self.ahead() == "^":
            self.at += 1
            value = _raise(value, self._argument())
        return value

    def _base(self) -> Sum:
        ahead = self.ahead()
        if mixed := _MIXED.match(self.text, self.at):
            return self._mixed(mixed)
        if scientific := _SCIENTIFIC.match(self.text, self.at):
            self.at = scientific.end()
            return _number(Fraction(scientific[1]) * Fraction(10) ** int(scientific[2]))
        if number := _NUMBER.match(self.text, self.at):
            self.at = number.end()
            return self._in_base(number[0])
        if command := _COMMAND.match(self.text, self.at):
            self.at = command.end()
            return self._command(command[1])
        if word := _WORD.match(self.text, self.at):
            self.at = word.end()
            return _square_root(self._argument()) if word[0] == "sqrt" else _atom(word[0] + self._subscript())
        if ahead == "|":
            return _atom(f"|{written(self._enclosed('|', '|'))}|")
        for opening, closing in (("(", ")"), ("{", "}"), ("[", "]")):
            if ahead == opening:
                return self._enclosed(opening, closing)
        raise NotAnExpression(self.text)

    def _mixed(self, match: re.Match[str]) -> Sum:
        whole, *rest = (part for part in match.groups() if part is not None)
        numerator, denominator = map(int, rest)
        if not denominator:
            raise NotAnExpression(self.text)
        self.at = match.end()
        return _number(int(whole) + Fraction(numerator, denominator))

    def _in_base(self, digits: str) -> Sum:
        """A numeral with a base is not computed: that an answer was asked for in base five is part of it."""
        base = self._subscript()
        if base:
            return _atom(f"n{digits}{base}")
        return _number(Fraction(digits))

    def _subscript(self) -> str:
        match = _SUBSCRIPT.match(self.text, self.at)
        if not match:
            return ""
        self.at = match.end()
        return f"_{match[1] or match[2]}"

    def _enclosed(self, opening: str, closing: str) -> Sum:
        self._expect(opening)
        value = self.sum()
        self._expect(closing)
        return value

    def _expect(self, character: str) -> None:
        if self.ahead() != character:
            raise NotAnExpression(self.text)
        self.at += 1

    def _argument(self) -> Sum:
        """Of a command or a power: a group in braces, one command, or one digit or letter; a sign may come before it."""
        ahead = self.ahead()
        if ahead == "-":
            self.at += 1
            return _multiply(_number(Fraction(-1)), self._argument())
        if ahead in ("{", "("):
            return self._enclosed(ahead, "}" if ahead == "{" else ")")
        if ahead.isdecimal():
            return self._digits()
        return self._base()

    def _digits(self) -> Sum:
        """One digit after a command, as TeX reads it; the whole numeral in plain notation (`x^12`, `sqrt2`)."""
        plain = "\\" not in self.text
        numeral = _NUMBER.match(self.text, self.at)
        digits = numeral[0] if plain and numeral else self.text[self.at]
        self.at += len(digits)
        return _number(Fraction(digits))

    def _command(self, name: str) -> Sum:
        if name in ("frac", "binom"):
            above, below = self._argument(), self._argument()
            if name == "binom":
                return _binomial(above, below)
            return _multiply(above, _raise(below, _number(Fraction(-1))))
        if name == "sqrt":
            degree = self._enclosed("[", "]") if self.ahead() == "[" else _number(Fraction(2))
            return _raise(self._argument(), _raise(degree, _number(Fraction(-1))))
        if name in _FUNCTIONS:
            return self._function(name)
        if name in _SYMBOLS:
            return _atom(name + self._subscript())
        return self._run_together(name)

    def _run_together(self, name: str) -> Sum:
        """`\\cotx`, which TeX does not know but graders that drop spaces write."""
        known = [end for end in range(2, len(name)) if name[:end] in _FUNCTIONS or name[:end] in _SYMBOLS]
        if not known:
            raise NotAnExpression(self.text)
        self.at -= len(name) - known[-1]
        return self._command(name[: known[-1]])

    def _function(self, name: str) -> Sum:
        index = self._subscript()
        power = _number(Fraction(1))
        if self.ahead() == "^":
            self.at += 1
            power = self._argument()
        if self.ahead() == "(":
            argument = self._enclosed("(", ")")
        else:
            argument = self._factor()
            while self.ahead() and (self.ahead().isalnum() or self.ahead() == "{"):
                argument = _multiply(argument, self._factor())
        return _raise(_atom(f"{name}{index}({written(argument)})"), power)


def _square_root(value: Sum) -> Sum:
    return _raise(value, _number(Fraction(1, 2)))


def _factorial(value: Sum) -> Sum:
    number = _constant(value)
    if number is None or number.denominator != 1 or not 0 <= number <= 100:
        return _atom(f"({written(value)})!")
    return _number(Fraction(factorial(int(number))))


def _binomial(above: Sum, below: Sum) -> Sum:
    n, k = _constant(above), _constant(below)
    if n is None or k is None or n.denominator != 1 or k.denominator != 1 or not 0 <= k <= n <= 200:
        return _atom(f"binom({written(above)},{written(below)})")
    return _number(Fraction(comb(int(n), int(k))))
