"""Who is asking: Bearer keys, the tenant that each belongs to, and where a server without keys may listen.

Keys are kept as SHA-256 digests: they are random and long, so a plain digest cannot be searched. A route
of `routes.GuardedRoute` asks `Keyring.tenant_of` before it reads the body.
"""

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass

from flowserve.errors import ConfigError

MIN_KEY_CHARS = 16
ANYBODY = ""
"""The tenant of a server without keys."""


@dataclass(frozen=True, slots=True)
class Keyring:
    """Digests of the keys that are let in, each with its tenant. Holds no key."""

    digests: tuple[tuple[bytes, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Keyring":
        """From `FLOWSERVE_API_KEYS`: keys separated by commas, each `KEY` or `TENANT:KEY`.

        Keys without a tenant share the tenant `default`. Messages never repeat a key.
        """
        digests = []
        for number, entry in enumerate((part.strip() for part in text.split(",") if part.strip()), 1):
            tenant, colon, key = entry.rpartition(":")
            if colon and not tenant:
                raise ConfigError(f"API key {number}: expected TENANT:KEY, got an empty tenant")
            if len(key) < MIN_KEY_CHARS:
                raise ConfigError(
                    f"API key {number}: expected at least {MIN_KEY_CHARS} characters, got {len(key)}; make one with "
                    "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
                )
            digests.append((_digest(key), tenant or "default"))
        if not digests:
            raise ConfigError("FLOWSERVE_API_KEYS: expected keys separated by commas, got none; unset it to go without")
        return cls(tuple(digests))

    def __bool__(self) -> bool:
        return bool(self.digests)

    def __repr__(self) -> str:
        return f"Keyring({len(self.digests)} keys)"

    def tenant_of(self, authorization: str | None) -> str | None:
        """The tenant of an `Authorization` header; None when it does not name one. Every key is compared."""
        if not self.digests:
            return ANYBODY
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        asked = _digest(key.strip())
        found = None
        for digest, tenant in self.digests:
            if hmac.compare_digest(digest, asked):
                found = tenant
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def check_bind(host: str, keys: Keyring, insecure: bool = False) -> None:
    """Raise ConfigError when `host` can be reached from elsewhere and no key is asked for."""
    if keys or insecure or is_loopback(host):
        return
    raise ConfigError(
        f"refusing to listen on {host} without API keys: anybody who reaches it could use it; "
        "set FLOWSERVE_API_KEYS, or listen on 127.0.0.1, or say --insecure"
    )


def is_loopback(host: str) -> bool:
    """Only this machine can reach `host`. A name other than localhost counts as reachable from elsewhere."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
