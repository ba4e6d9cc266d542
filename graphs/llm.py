"""`@fs.llm` and `fs.prompt`: a function whose body says what to ask a model.

The body runs once, with Values as arguments, when the node is first used; `fs.prompt` ends it and carries the
templates out, which is what its type `NoReturn` says.
"""

import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Self, overload

from flowserve.errors import GraphError, Problem
from flowserve.graphs import exits, hints, retrieving, settings, signature
from flowserve.graphs.declaration import OutputExpr, ParamExpr
from flowserve.graphs.nodes import Node, P, R
from flowserve.graphs.plan import SAMPLING, ExitSpec, Kind, LLMSpec, Retry, Span, Template
from flowserve.graphs.signature import Signature
from flowserve.graphs.trace import Trace, current, tracing
from flowserve.graphs.types import Message
from flowserve.graphs.values import Value

QUALITIES = ("exact", "balanced", "fast")
LOSSES = ("restart", "continue", "fail")


class _Given(BaseException):
    """How `prompt` leaves the body of an llm function; not an Exception, so that no `except` keeps it."""

    def __init__(self, user: object, system: object, history: object) -> None:
        super().__init__("fs.prompt was called outside the body of an @fs.llm function")
        self.user, self.system, self.history = user, system, history


class _Prompt:
    """`fs.prompt(...)` and `fs.prompt.file(...)`."""

    def __call__(self, user: str = "", *, system: str = "", history: list[Message] | None = None) -> NoReturn:
        """Ask the model this. Texts are Jinja2 templates over the function's parameters.

        The model sees the system text, then `history` (a parameter of type list[Message]), then the user text.
        """
        self._check_place()
        raise _Given(user, system, history)

    def file(self, path: str, *, system: str = "", history: list[Message] | None = None) -> NoReturn:
        """As `prompt`, with the user text from a file; relative paths start at the folder of the calling file."""
        self._check_place()
        place = Path(sys._getframe(1).f_code.co_filename).parent / path
        try:
            text = place.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            trace = current()
            assert trace is not None
            came = f"{path} ({getattr(error, 'strerror', None) or error})"
            trace.note(Problem(trace.name, "a readable template file", came, "Give a path beside the Python file."))
            text = ""
        raise _Given(text, system, history)

    def _check_place(self) -> None:
        if not isinstance(current(), _PromptTrace):
            remedy = "Call it as the last statement of an @fs.llm function."
            raise GraphError(
                "prompt",
                [Problem("fs.prompt", "a call in the body of an @fs.llm function", "a call elsewhere", remedy)],
            )


prompt = _Prompt()


class _PromptTrace(Trace):
    """The trace of an llm function's body."""


class LLMNode(Node[P, R]):
    """One model call."""

    def __init__(self, fn: Callable[..., Any], sampling: dict[str, Any], **options: Any) -> None:
        self.fn = fn
        self.sampling = sampling
        self.settings, self.setting_problems = settings.read(**options)
        self.__doc__ = fn.__doc__
        self.__name__ = fn.__name__

    @cached_property
    def signature(self) -> Signature:
        return signature.read(self.fn, self.settings.name)

    def options(self, **changes: Any) -> Self:
        """The same call with other settings: name, retry, timeout, cache, and everything that `@fs.llm` takes."""
        own = {key: changes.pop(key) for key in list(changes) if key in SAMPLING}
        other = super().options(**changes)
        other.sampling = self.sampling | own
        return other

    def problems(self) -> tuple[Problem, ...]:
        return (*super().problems(), *self._read[1])

    def declare(self, trace: Trace, args: dict[str, object]) -> Value:
        spec = trace.model(self.spec, self.signature.returns)
        exprs = trace.lift_all(self.signature, args)
        named_by = None if self.settings.name is None else self
        node = trace.add(Kind.LLM, self.name, exprs, spec, self.settings, named_by=named_by)
        return Value(OutputExpr(node), self.signature.returns, node.name)

    @property
    def spec(self) -> LLMSpec:
        """What is asked of an engine, before the workflow makes the name unique."""
        return self._read[0]

    @cached_property
    def _read(self) -> tuple[LLMSpec, tuple[Problem, ...]]:
        problems: list[Problem] = []
        name, sig = self.name, self.signature
        template = _read_template(self.fn, sig, problems)
        params, output = io_schemas(sig, problems)
        sampling = checked_sampling(name, self.sampling, problems)
        check_form(name, output, sampling, problems)
        check_order(name, template, sampling, problems)
        exits.check_exit(name, output, sampling, problems)
        retrieving.check_retrieval(name, output, sampling, problems)
        if self.settings.cache and sampling.get("temperature", 0) != 0 and sampling.get("seed") is None:
            came = f"cache=True with temperature={sampling['temperature']}"
            problems.append(
                Problem(
                    name, "an answer that is always the same when it is cached", came, "Use temperature=0 or a seed."
                )
            )
        return LLMSpec(name, template, params, output, **sampling), tuple(problems)


def io_schemas(sig: Signature, problems: list[Problem]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Schemas of parameters and output (None for text)."""
    params: dict[str, Any] = {"type": "object", "properties": {}}
    output: dict[str, Any] | None = None
    remedy = "Use plain types, pydantic models or dataclasses."
    try:
        params = sig.schema()
    except TypeError as error:
        problems.append(Problem(sig.name, "parameters that can be written as JSON", str(error), remedy))
    if hints.plain(sig.returns) not in (str, Any):
        try:
            output = sig.returns_schema(accepted=True)
        except TypeError as error:
            problems.append(Problem(sig.name, "an output type that a model can write as JSON", str(error), remedy))
    return params, output


def _read_template(fn: Callable[..., Any], sig: Signature, problems: list[Problem]) -> Template:
    """Run the body once and compile what it gives to `prompt`."""
    trace = _PromptTrace(sig.name)
    trace.block.params = tuple(p.name for p in sig.params)
    stand_ins = {
        p.name: Value(ParamExpr(trace.block, i), p.type, f"{sig.name}: parameter '{p.name}'")
        for i, p in enumerate(sig.params)
    }
    given: _Given | None = None
    try:
        with tracing(trace):
            fn(**stand_ins)
    except _Given as signal:
        given = signal
    except Exception as error:  # noqa: BLE001 (whatever the author's function raises becomes a problem)
        if not trace.problems:
            came = f"{type(error).__name__}: {error}"
            problems.append(
                Problem(
                    sig.name, "a body that only calls fs.prompt(...)", came, "Prepare values in a @fs.tool function."
                )
            )
    problems += trace.problems
    if given is None:
        if not problems:
            problems.append(
                Problem(sig.name, "a body that calls fs.prompt(...)", "no such call", 'Write fs.prompt("...") in it.')
            )
        return Template(())
    history = _history(given.history, sig, problems)
    user = check_template(given.user, sig, "prompt", problems)
    system = check_template(given.system, sig, "system prompt", problems)
    if not user and not system and history is None and not problems:
        problems.append(Problem(sig.name, "a prompt", "an empty one", "Write a text or pass history=."))
    return Template(user, system, history, given.user if isinstance(given.user, str) else "", str(given.system or ""))


def _history(value: object, sig: Signature, problems: list[Problem]) -> str | None:
    if value is None:
        return None
    expr = value._fs_expr if isinstance(value, Value) else None
    if isinstance(expr, ParamExpr):
        param = sig.params[expr.index]
        if hints.fits(list[Message], param.type):
            return param.name
        value = f"parameter '{param.name}' of type {hints.describe(param.type)}"
    problems.append(
        Problem(
            sig.name,
            "history= a parameter of type list[fs.Message]",
            str(value),
            "Declare `messages: list[fs.Message]` and pass it.",
        )
    )
    return None


def check_template(source: object, sig: Signature, what: str, problems: list[Problem]) -> tuple[Span, ...]:
    """Compile a template of `sig`; what is wrong with it is added to `problems`."""
    from flowserve.graphs import split

    if not isinstance(source, str):
        problems.append(
            Problem(
                sig.name, f"a {what} that is a string", type(source).__name__, "Write the text with {{ names }} in it."
            )
        )
        return ()
    try:
        spans, used = split.split(source), split.variables(source)
    except split.TemplateProblem as error:
        problems.append(Problem(sig.name, f"a {what} in Jinja2 syntax", str(error), "Fix the template."))
        return ()
    known = [p.name for p in sig.params]
    for name in sorted(used - set(known)):
        came = f"{{{{ {name} }}}}, but the function has: {', '.join(known) or 'no parameters'}"
        problems.append(
            Problem(
                sig.name,
                f"a {what} that uses the function's parameters",
                came,
                f"Add a parameter '{name}', or correct the name.",
            )
        )
    for path, known_fields in split.wrong_fields(source, {p.name: p.type for p in sig.params}):
        came = f"{{{{ {path} }}}}, but {known_fields}"
        problems.append(Problem(sig.name, f"a {what} that reads fields that exist", came, "Use one of these fields."))
    return spans


def checked_sampling(name: str, values: dict[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """Sampling settings for an LLMSpec; wrong ones are reported and left at their defaults."""
    rules: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "model": ("a model name or None", lambda v: v is None or isinstance(v, str)),
        "max_tokens": ("a number from 1 to 1,000,000", lambda v: settings.is_count(v, 1, 1_000_000)),
        "temperature": ("a number from 0 to 10", lambda v: settings.is_seconds(v, zero=True) and v <= 10),
        "top_p": ("a number above 0, at most 1", lambda v: settings.is_seconds(v) and v <= 1),
        "top_k": ("a number from 0 (all)", lambda v: settings.is_count(v, 0, 1_000_000)),
        "seed": ("an integer or None", lambda v: v is None or settings.is_count(v, -(2**63), 2**63 - 1)),
        "stop": (
            "up to 16 texts",
            lambda v: isinstance(v, tuple) and len(v) <= 16 and all(isinstance(s, str) and s for s in v),
        ),
        "quality": (f"one of {', '.join(QUALITIES)}", lambda v: v in QUALITIES),
        "reuse": (f"None or one of {', '.join(QUALITIES)}", lambda v: v is None or v in QUALITIES),
        "stream": ("True or False", lambda v: isinstance(v, bool)),
        "regex": ("a regular expression or None", lambda v: v is None or (isinstance(v, str) and bool(v))),
        "grammar": ("a Lark grammar or None", lambda v: v is None or (isinstance(v, str) and bool(v))),
        "thinking_budget": ("a number of tokens or None", lambda v: v is None or settings.is_count(v, 0, 1_000_000)),
        "on_loss": (f"None or one of {', '.join(LOSSES)}", lambda v: v is None or v in LOSSES),
        "any_order": ("the name of a list parameter or None", lambda v: v is None or (isinstance(v, str) and bool(v))),
        "exit": ("fs.early_exit(...) or None", lambda v: v is None or isinstance(v, ExitSpec)),
        "retrieve_every": (
            f"a number of tokens from 1 to {retrieving.MOST_EVERY:,} or None",
            lambda v: v is None or settings.is_count(v, 1, retrieving.MOST_EVERY),
        ),
        "retrieve_from": (
            "the name of an index or None",
            lambda v: v is None or (isinstance(v, str) and 0 < len(v) <= 200),
        ),
        "retrieve_mode": (
            f"None or one of {', '.join(retrieving.MODES)}",
            lambda v: v is None or v in retrieving.MODES,
        ),
    }
    good: dict[str, Any] = {}
    for key, given in values.items():
        value: Any = given
        if key == "stop" and isinstance(given, str | list):
            value = (given,) if isinstance(given, str) else tuple(given)
        if key == "exit" and isinstance(given, dict):
            value = exits.from_data(given)
        expected, fine = rules[key]
        if not fine(value):
            problems.append(Problem(name, f"{key}= {expected}", f"{value!r}", "Correct the setting."))
        else:
            good[key] = float(value) if key in ("temperature", "top_p") else value
    return good


def check_form(name: str, output: dict[str, Any] | None, sampling: dict[str, Any], problems: list[Problem]) -> None:
    """The form of the output is given once, and only text without a form can be gone on with in the middle."""
    forms = [key for key in ("regex", "grammar") if sampling.get(key) is not None]
    given = [*(["a typed result"] if output is not None else []), *(f"{form}=" for form in forms)]
    if len(given) > 1:
        came = " and ".join(given)
        problems.append(Problem(name, "one form of the output at most", came, "Return str, and give one of them."))
    if given and sampling.get("on_loss") == "continue":
        came = f"on_loss='continue' with {given[0]}"
        remedy = "Use 'restart' or 'fail': constrained decoding cannot begin in the middle."
        problems.append(Problem(name, "text that another engine can go on with", came, remedy))


def check_order(name: str, template: Template, sampling: dict[str, Any], problems: list[Problem]) -> None:
    """`any_order` names what one top-level loop goes over, and no item is written by its place."""
    from flowserve.graphs import split

    free = sampling.get("any_order")
    if free is None:
        return
    loops = [span for span in (*template.system, *template.user) if span.kind == "each" and span.over == free]
    where = f"any_order='{free}'"
    if len(loops) != 1:
        expected = f"{where} with one top-level {{% for item in {free} %}} in the prompt"
        problems.append(Problem(name, expected, f"{len(loops)} of them", "Write that loop, or leave any_order out."))
    elif "loop" in split.variables(loops[0].text):
        expected = f"{where} with items that are written alike at every place"
        remedy = "Write what names an item, such as its id, instead of its number; or leave any_order out."
        problems.append(Problem(name, expected, "a body that reads 'loop'", remedy))


@overload
def llm(fn: Callable[P, R], /) -> LLMNode[P, R]: ...


@overload
def llm(
    *,
    name: str | None = None,
    model: str | None = None,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    stop: str | list[str] | tuple[str, ...] = (),
    quality: str = "exact",
    reuse: str | None = None,
    stream: bool = True,
    regex: str | None = None,
    grammar: str | None = None,
    thinking_budget: int | None = None,
    on_loss: str | None = None,
    any_order: str | None = None,
    exit: ExitSpec | None = None,
    retrieve_every: int | None = None,
    retrieve_from: str | None = None,
    retrieve_mode: str | None = None,
    retry: int | Retry = 0,
    timeout: float | None = None,
    cache: bool = False,
) -> Callable[[Callable[P, R]], LLMNode[P, R]]: ...


def llm(
    fn: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    model: str | None = None,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    stop: str | list[str] | tuple[str, ...] = (),
    quality: str = "exact",
    reuse: str | None = None,
    stream: bool = True,
    regex: str | None = None,
    grammar: str | None = None,
    thinking_budget: int | None = None,
    on_loss: str | None = None,
    any_order: str | None = None,
    exit: ExitSpec | None = None,
    retrieve_every: int | None = None,
    retrieve_from: str | None = None,
    retrieve_mode: str | None = None,
    retry: int | Retry = 0,
    timeout: float | None = None,
    cache: bool = False,
) -> LLMNode[P, R] | Callable[[Callable[P, R]], LLMNode[P, R]]:
    """Declare a model call: typed parameters, a body that calls `fs.prompt(...)`, a typed result.

    A result type other than `str` makes the model answer in JSON of that type. `retry=2` means two more tries;
    `timeout` is seconds of one try; `quality` is how much approximation is allowed (`exact` is none), and
    `reuse` how much of it in KV of passages that was computed elsewhere (None: as `quality`). `regex` or `grammar` (Lark) is a form that text must have. `on_loss` says what becomes of a half-written answer when its engine
    is lost: `restart`, `continue` elsewhere, or `fail`. `any_order` names a list whose `{% for %}` may be written in any
    order: then a prompt begins as recent ones did, and its answer is the answer to the prompt in that order.
    `exit=fs.early_exit(...)` lets the call end when it is sure of its answer. `retrieve_every=4, retrieve_from="docs"` looks up a
    passage of that index every four tokens, with the last words as the query; `retrieve_mode` says how its latency is hidden.
    """
    sampling: dict[str, Any] = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop,
        "quality": quality,
        "reuse": reuse,
        "stream": stream,
        "regex": regex,
        "grammar": grammar,
        "thinking_budget": thinking_budget,
        "on_loss": on_loss,
        "any_order": any_order,
        "exit": exit,
        "retrieve_every": retrieve_every,
        "retrieve_from": retrieve_from,
        "retrieve_mode": retrieve_mode,
    }

    def declare(fn: Callable[P, R]) -> LLMNode[P, R]:
        return LLMNode(fn, sampling, name=name, retry=retry, timeout=timeout, cache=cache)

    return declare if fn is None else declare(fn)
