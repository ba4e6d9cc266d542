"""What every adapter checks of a call before it computes anything."""

import math

from flowserve.engines.base import Call, Capabilities
from flowserve.errors import ContextTooLong, InputError, UnknownName, Unsupported

MAX_LOGPROBS = 20
MAX_CHOICES = 64
MAX_STOPS = 16


def check_call(call: Call, capabilities: Capabilities, prompt_tokens: int) -> None:
    """Raises RequestError for a wrong call and Unsupported for a missing capability.

    A prompt must leave room for one token of output; output that fills the context ends with `Finish.LENGTH`.
    """
    problems = sampling_problems(call)
    if problems:
        text = "; ".join(f"{where}: {message}" for where, message in problems)
        raise InputError(f"call '{call.id}': {text}", problems)
    if call.model and capabilities.models and call.model not in capabilities.models:
        raise UnknownName("model", call.model, capabilities.models)
    _check_constraint(call, capabilities)
    if call.sampling.thinking_budget is not None and not capabilities.thinking_budget:
        raise Unsupported(_lacks("thinking_budget", "leave thinking_budget out, or give vLLM a reasoning_parser"))
    if call.resumed:
        _check_resumed(call, capabilities)
    if call.sampling.logprobs is not None and not capabilities.logprobs:
        raise Unsupported(_lacks("logprobs", "leave logprobs out, or use another engine"))
    if prompt_tokens == 0:
        raise InputError(f"call '{call.id}': the prompt has no tokens; give at least one segment with text")
    if capabilities.max_context and prompt_tokens >= capabilities.max_context:
        raise ContextTooLong(
            f"call '{call.id}': the prompt has {prompt_tokens} tokens; the model holds {capabilities.max_context}, "
            "answer included. Shorten the prompt or use a model with a longer context."
        )


def _check_constraint(call: Call, capabilities: Capabilities) -> None:
    given = [name for name in ("schema", "regex", "grammar") if getattr(call, name) is not None]
    if len(given) > 1:
        raise InputError(
            f"call '{call.id}': expected at most one of schema, regex and grammar; got {' and '.join(given)}"
        )
    for name in given:
        if not getattr(capabilities, name):
            raise Unsupported(_lacks(name, "let the prompt ask for that form and validate, or use another engine"))


def _check_resumed(call: Call, capabilities: Capabilities) -> None:
    if not capabilities.tokens:
        raise Unsupported(_lacks("tokens", "begin the call anew"))
    if call.sampling.n > 1 or call.constrained:
        raise InputError(f"call '{call.id}': resumed: expected one choice without a constraint")
    if len(call.resumed) >= call.sampling.max_tokens:
        raise InputError(
            f"call '{call.id}': resumed: expected fewer than max_tokens ({call.sampling.max_tokens}) tokens; "
            f"got {len(call.resumed)}"
        )


def sampling_problems(call: Call) -> list[tuple[str, str]]:
    """(pointer, message) for each setting that is out of bounds."""
    sampling = call.sampling
    problems: list[tuple[str, str]] = []

    def need(fine: bool, field: str, expected: str, came: object) -> None:
        if not fine:
            problems.append((f"/sampling/{field}", f"expected {expected}; got {came!r}"))

    need(sampling.max_tokens >= 1, "max_tokens", "at least 1", sampling.max_tokens)
    temperature = sampling.temperature
    need(math.isfinite(temperature) and temperature >= 0, "temperature", "a finite number >= 0", temperature)
    need(0 < sampling.top_p <= 1, "top_p", "a number in (0, 1]", sampling.top_p)
    need(sampling.top_k >= 0, "top_k", "0 (all) or more", sampling.top_k)
    need(1 <= sampling.n <= MAX_CHOICES, "n", f"1 to {MAX_CHOICES}", sampling.n)
    logprobs = sampling.logprobs
    need(logprobs is None or 0 <= logprobs <= MAX_LOGPROBS, "logprobs", f"None or 0 to {MAX_LOGPROBS}", logprobs)
    stop = sampling.stop
    need(len(stop) <= MAX_STOPS and all(stop), "stop", f"up to {MAX_STOPS} strings, none empty", stop)
    budget = sampling.thinking_budget
    need(budget is None or budget >= 0, "thinking_budget", "None or at least 0", budget)
    seed = sampling.seed
    need(seed is None or -(1 << 63) <= seed < 1 << 63, "seed", "a 64-bit integer", seed)
    return problems


def _lacks(capability: str, remedy: str) -> str:
    return f"this engine lacks the capability '{capability}': {remedy}"
