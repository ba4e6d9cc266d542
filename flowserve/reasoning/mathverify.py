"""Answers that the canonical form cannot decide, asked of the package math-verify (extra `math`), which computes with sympy.

It guards itself by an alarm, which only a main thread may set, so it works in a process of its own; that process also keeps
sympy out of this one.
"""

import importlib
import importlib.util
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from types import TracebackType
from typing import Self

from flowserve.errors import ConfigError
from flowserve.reasoning.answers import canonical


class ByMathVerify:
    """A comparator. Answers that it gives up on after `timeout_s`, or fails on, are different.

    Its "same" is not always transitive, so labels can depend on the order of answers. Close it, or use it in a `with`.
    """

    def __init__(self, timeout_s: int = 3) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError("comparing by math-verify: the package is missing; pip install 'flowserve[math]'")
        if timeout_s < 1:
            raise ConfigError(f"timeout_s: expected whole seconds from 1 on; got {timeout_s}")
        self._timeout_s = timeout_s
        self._worker = ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"))

    def key(self, answer: str) -> str | None:
        return canonical(answer)

    def same(self, left: str, right: str) -> bool:
        try:
            return self._worker.submit(_verify, left, right, self._timeout_s).result()
        except BrokenProcessPool:
            self._worker = ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"))
            return False

    def close(self) -> None:
        self._worker.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _verify(left: str, right: str, timeout_s: int) -> bool:
    package = importlib.import_module("math_verify")
    one, other = (package.parse(f"${answer.strip('$')}$", parsing_timeout=timeout_s) for answer in (left, right))
    return bool(package.verify(one, other, timeout_seconds=timeout_s))
