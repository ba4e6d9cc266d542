"""Which exit rule a model call may be stopped by: the conservative one, or the one that a certificate allows."""

import logging
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from flowserve.config import SHADOW_SHARE
from flowserve.core.stopping.chains import CHAIN_RULES, DEFAULT_RULE
from flowserve.errors import ConfigError, FlowServeError
from flowserve.graphs.encode import canonical, exit_data
from flowserve.graphs.plan import TRIAL, ExitSpec
from flowserve.reasoning.certificates import Absent, Certificate, Subject
from flowserve.reasoning.certificates import Certificates as CertificateFolder
from flowserve.reasoning.shadow import Verdict
from flowserve.reasoning.tallies import told
from flowserve.shadowing import is_shadowed

log = logging.getLogger("flowserve.runtime")

Rule = tuple[str, tuple[tuple[str, float], ...]]
"""(name in `CHAIN_RULES`, its parameters)."""
CONSERVATIVE: Rule = (DEFAULT_RULE, ())


class Watch(Protocol):
    """Hears what shadows of calls under one certificate came to."""

    def observe(self, verdict: Verdict) -> str | None:
        """Why the certificate was revoked just now; None: it was not. May raise FlowServeError; may block."""
        ...


class Certificates(Protocol):
    """Where certificates are looked up."""

    def rule(self, model: str, template: str, task: str) -> Rule | None:
        """The rule that is certified for `model`, trials of wording `template` and tasks of class `task`. None: none is, or it has
        expired or was revoked. May raise FlowServeError."""
        ...

    def watch(self, request: str, model: str, template: str, task: str) -> Watch | None:
        """Who wants to hear what the call `request`, which was stopped, would have come to; None: nobody does. May raise
        FlowServeError."""
        ...


class Folder:
    """Those that `flowserve gate stopping` has written. `shadow_share` of the calls that they let stop run on unseen."""

    def __init__(self, folder: Path, shadow_share: float = SHADOW_SHARE) -> None:
        if not 0 <= shadow_share <= 1:
            raise ConfigError(f"shadow share: expected a share of stopped calls, 0 to 1; got {shadow_share}")
        self._path = folder
        self._folder = CertificateFolder(folder)
        self._share = shadow_share

    def rule(self, model: str, template: str, task: str) -> Rule | None:
        found = self._folder.lookup(Subject(model, template, task), datetime.now(UTC))
        return None if isinstance(found, Absent) else (found.rule, tuple(sorted(found.args.items())))

    def watch(self, request: str, model: str, template: str, task: str) -> Watch | None:
        if not is_shadowed(request, self._share):
            return None
        found = self._folder.lookup(Subject(model, template, task), datetime.now(UTC))
        return None if isinstance(found, Absent) else Watched(self._path, found)


class Watched:
    """A certificate in a folder."""

    def __init__(self, folder: Path, certificate: Certificate) -> None:
        self._folder = folder
        self._certificate = certificate

    def observe(self, verdict: Verdict) -> str | None:
        reason = told(self._folder, self._certificate, verdict).breach()
        if reason is not None:
            CertificateFolder(self._folder).revoke(self._certificate.subject, reason)
        return reason


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


def watch_of(exit: ExitSpec, request: str, model: str, certificates: Certificates | None) -> Watch | None:
    """Who wants to hear how the stopped call `request` would have ended."""
    if exit.rule == "default" or certificates is None:
        return None
    try:
        return certificates.watch(request, model, template_of(exit), exit.task)
    except FlowServeError as error:
        log.warning("early exit: the certificate for %s cannot be watched: %s", model, error)
        return None
