"""Which exit rule a model call may be stopped by: the conservative one, or the one that a certificate allows."""

from hashlib import sha256
from typing import Protocol

from flowserve.core.stopping.chains import CHAIN_RULES, DEFAULT_RULE
from flowserve.graphs.encode import canonical, exit_data
from flowserve.graphs.plan import LLMSpec

Rule = tuple[str, tuple[tuple[str, float], ...]]
"""(name in `CHAIN_RULES`, its parameters)."""
CONSERVATIVE: Rule = (DEFAULT_RULE, ())


class Certificates(Protocol):
    """Where certificates are looked up."""

    def rule(self, model: str, prompt: str, task: str) -> Rule | None:
        """The rule that is certified for calls of `model` with the prompt `prompt` (`fingerprint`) on tasks of class `task`.
        None: none is, or it has expired or was revoked."""
        ...


def fingerprint(spec: LLMSpec) -> str:
    """Equal for nodes that ask alike, fork alike and read answers alike, whatever their values."""
    assert spec.exit is not None
    asked = (spec.template.system_source, spec.template.source, exit_data(spec.exit))
    return sha256(canonical(asked).encode("ascii")).hexdigest()[:16]


def rule_of(spec: LLMSpec, model: str, certificates: Certificates | None) -> Rule:
    """What may end calls of `spec` at `model`. Raises nothing: without a usable certificate it is the conservative rule."""
    if spec.exit is None or spec.exit.rule == "default" or certificates is None:
        return CONSERVATIVE
    found = certificates.rule(model, fingerprint(spec), spec.exit.task)
    return found if found is not None and found[0] in CHAIN_RULES else CONSERVATIVE
