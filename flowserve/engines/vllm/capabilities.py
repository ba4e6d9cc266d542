"""What a vLLM engine offers, from what its host found out; and which flag of vLLM would add what it lacks."""

from collections.abc import Sequence

from flowserve.engines.base import Call, Capabilities
from flowserve.engines.vllm.control import PREEMPT, REORDER
from flowserve.engines.vllm.wire import Ready
from flowserve.errors import Unsupported

_CONSTRAINT = (
    "vLLM's structured output backend cannot constrain this model's tokenizer; another backend may: "
    "args={'structured_outputs_config': {'backend': 'xgrammar'}} (--structured-outputs-config)"
)
REMEDIES = {
    "schema": _CONSTRAINT,
    "regex": _CONSTRAINT,
    "grammar": f"{_CONSTRAINT}. Lark's syntax needs 'guidance', the default",
    "thinking_budget": "tell vLLM how the model thinks: args={'reasoning_parser': ...} (--reasoning-parser)",
    "sleep": "it needs args={'enable_sleep_mode': True} (--enable-sleep-mode) and a GPU",
}
"""By capability: what to do for it."""


def capabilities_of(ready: Ready, names: Sequence[str]) -> Capabilities:
    """names: of the model and of its adapters."""
    return Capabilities(
        models=tuple(names),
        max_context=ready.max_context,
        priority=ready.priority,
        logprobs=True,
        schema="schema" in ready.constraints,
        regex="regex" in ready.constraints,
        grammar="grammar" in ready.constraints,
        prefix_reuse=ready.prefix_reuse,
        lora=len(names) > 1,
        kv_connector=ready.kv_connector,
        chunk_reuse=tuple(sorted(set((ready.reuse or {}).values()))),
        thinking_budget=ready.thinking,
        deterministic_seed=True,
        sessions=ready.sessions,
        reprioritise=ready.priority and REORDER in ready.controls,
        preempt=PREEMPT in ready.controls,
        kv_events=ready.kv_events,
        sleep=ready.sleep,
        restart=True,
    )


def check_offered(call: Call, capabilities: Capabilities) -> None:
    """Raises Unsupported with vLLM's remedy, where checks.check_call would name a general one."""
    for name in ("schema", "regex", "grammar"):
        if getattr(call, name) is not None and not getattr(capabilities, name):
            raise lacking(name)
    if call.sampling.thinking_budget is not None and not capabilities.thinking_budget:
        raise lacking("thinking_budget")


def lacking(capability: str) -> Unsupported:
    return Unsupported(f"this engine lacks the capability '{capability}': {REMEDIES[capability]}")
