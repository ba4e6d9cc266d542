"""Which exit rule a model call may be stopped by: the conservative one, or the one that a certificate allows."""

import logging
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from flowserve.core.stopping.chains import CHAIN_RULES, DEFAULT_RULE
from flowserve.errors import FlowServeError
from flowserve.graphs.encode import canonical, exit_data
from flowserve.graphs.plan import TRIAL, ExitSpec
from flowserve.reasoning.certificates import Absent, Subject
from flowserve.reasoning.certificates import Certificates as CertificateFolder

log = logging.getLogger("flowserve.runtime")

Rule = tuple[str, tuple[tuple[str, float], ...]]
"""(name in `CHAIN_RULES`, its parameters)."""
CONSERVATIVE: Rule = (DEFAULT_RULE, ())


class Certificates(Protocol):
    """Where certificates are looked up."""

    def rule(self, model: str, template: str, task: str) -> Rule | None:
        """The rule that is certified for `model`, trials of wording `template` and tasks of class `task`. None: none is, or it has
        expired or was revoked. May raise FlowServeError."""
        ...


class Folder:
    """Those that `flowserve gate stopping` has written."""

    def __init__(self, folder: Path) -> None:
        self._folder = CertificateFolder(folder)

    def rule(self, model: str, template: str, task: str) -> Rule | None:
        found = self._folder.lookup(Subject(model, template, task), datetime.now(UTC))
        return None if isinstance(found, Absent) else (found.rule, tuple(sorted(found.args.items())))


def template_of(exit: ExitSpec) -> str:
    """The name of a trial's wording in certificates: `boxed` for the usual one, another for all that is forked, read or weighed in
    another way."""
    if exit.trial == TRIAL and exit.answer == "boxed":
        return "boxed"
    told = {key: value for key, value in exit_data(exit).items() if key not in ("rule", "deliver", "budget", "task")}
    return sha256(canonical(told).encode("ascii")).hexdigest()[:16]


def rule_of(exit: ExitSpec | None, model: str, certificates: Certificates | None) -> Rule:
    """What may end calls with `exit` at `model`: without a certificate that can be used, the conservative rule."""
    if exit is None or exit.rule == "default" or certificates is None:
        return CONSERVATIVE
    try:
        name, args = certificates.rule(model, template_of(exit), exit.task) or CONSERVATIVE
        CHAIN_RULES[name].complete(dict(args))
    except (FlowServeError, KeyError) as error:
        log.warning("early exit: the certificate for %s cannot be used: %s", model, error)
        return CONSERVATIVE
    return name, args
