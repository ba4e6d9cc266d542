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
    if call.schema is not None and not capabilities.schema:
        raise Unsupported(_lacks("schema", "let the prompt ask for JSON and validate, or use another engine"))
    if call.sampling.logprobs is not None and not capabilities.logprobs:
        raise Unsupported(_lacks("logprobs", "leave logprobs out, or use another engine"))
    if prompt_tokens == 0:
        raise InputError(f"call '{call.id}': the prompt has no tokens; give at least one segment with text")
    if capabilities.max_context and prompt_tokens >= capabilities.max_context:
        raise ContextTooLong(
            f"call '{call.id}': the prompt has {prompt_tokens} tokens; the model holds {capabilities.max_context}, "
            "answer included. Shorten the prompt or use a model with a longer context."
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
    seed = sampling.seed
    need(seed is None or -(1 << 63) <= seed < 1 << 63, "seed", "a 64-bit integer", seed)
    return problems


def _lacks(capability: str, remedy: str) -> str:
    return f"this engine lacks the capability '{capability}': {remedy}"
