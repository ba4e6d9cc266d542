"""Names for tenants and sessions that tell an engine nothing and that nobody else can make.

vLLM hashes a request's cache salt into its prefix's first block, so two tenants never hit each other's blocks and
cannot find out by timing what the other has asked. A salt that a client could choose or guess would let it ask as that
tenant (CVE-2025-46570), and one with odd characters has killed servers (CVE-2026-105756). So each is an HMAC-SHA256 of
a secret, in base64url: 44 characters, whatever the tenant is called.
"""

import hashlib
import hmac
import json
import secrets
from base64 import urlsafe_b64encode


class Salts:
    """secret: the same in all processes that may share a tenant's cached prefixes; b"": a random one."""

    def __init__(self, secret: bytes = b"") -> None:
        self._secret = secret or secrets.token_bytes(32)
        self._salts: dict[str, str] = {}
        self._tenants: dict[str, str] = {}

    def of(self, tenant: str) -> str:
        """The cache salt of a tenant."""
        salt = self._salts.get(tenant)
        if salt is None:
            salt = self._salts[tenant] = self._name(tenant)
            self._tenants[salt] = tenant
        return salt

    def tenant(self, salt: str) -> str | None:
        """Whose salt it is; None: it was not made here."""
        return self._tenants.get(salt)

    def session(self, tenant: str, session: str) -> str:
        """A name for a tenant's session."""
        return self._name(json.dumps(["session", tenant, session]))

    def _name(self, text: str) -> str:
        digest = hmac.digest(self._secret, text.encode(errors="surrogatepass"), hashlib.sha256)
        return urlsafe_b64encode(digest).decode()
