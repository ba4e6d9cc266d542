"""What an operator says of the reuse of chunks: how much memory of which kind, which policy for which class, who may read.

Checked when built. How the parts are made of it is the affair of the engine that has a store.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from flowserve.cachestore.policies import PASTES, Policy, parse_policy
from flowserve.cachestore.segments import Quality
from flowserve.errors import ConfigError
from flowserve.ids import Bytes, Tokens

GIB: Final = 1 << 30
SCHEMES: Final = ("valkey", "s3")
"""Kinds of remote tiers, as the scheme of their URL."""
EXAMPLES: Final = {
    "hkvd": "hkvd:0.15",
    "budgeted": "budgeted:0.15",
    "query_attn": "query_attn:0.2",
    "none": "none",
    "sink0": "sink0",
}
"""What may be written instead of a text that names a policy and is none."""


@dataclass(frozen=True, slots=True)
class ReuseSettings:
    """The store of one engine, and what may be done with what is in it."""

    host_bytes: Bytes = GIB
    """Memory of the machine for records."""
    disk: Path | None = None
    """Folder for records, of this store alone; None: no disk tier. What is in it is found again after a restart."""
    disk_bytes: Bytes = 16 * GIB
    """Most that the records in `disk` take."""
    remote: str = field(default="", repr=False)
    """`valkey://host:port/db` or `s3://bucket/prefix`; "": no remote tier. May hold a password."""
    remote_bytes: Bytes = 64 * GIB
    """Most that this store's records take there."""
    gates: Path | None = None
    """Folder with the gate files of models (`flowserve gate reuse`). A policy without one is off, so None pastes nothing."""
    balanced: str = "first_k:16"
    """Policy of calls that ask for `balanced`: a name of `policies.NAMES`, and after a colon its number or, by name, its
    parameters (`hkvd:ratio=0.2,gradual=0.2/0.1`)."""
    fast: str = "first_k:16"
    """Policy of calls that ask for `fast`."""
    sink_tokens: Tokens = 4
    """Fixed tokens, the first of them BOS where the model has one, before which a chunk is encoded; they are dropped
    afterwards. Part of every record's key."""
    least_chunk_tokens: Tokens = 32
    """Shorter chunks are computed."""
    secret: bytes = field(default=b"", repr=False)
    """What the keys of tenants are made from; who has the same one finds the same records. b"": a random one, kept in `disk`
    where there is one."""
    shadow_share: float = 0.01
    """Share of the calls with pasted chunks that are computed in full as well, unseen, to compare first tokens."""
    measuring: bool = False
    """The policies are used without gates: for the measurement that a gate is made of, and for nothing else."""

    def __post_init__(self) -> None:
        for name, least in (
            ("host_bytes", 0), ("disk_bytes", 1), ("remote_bytes", 1), ("sink_tokens", 0), ("least_chunk_tokens", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise _wrong(name, f"a whole number of at least {least}", value, "Leave it out for the default.")
        share = self.shadow_share
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0.0 <= share <= 1.0:
            raise _wrong("shadow_share", "a number from 0 to 1", share, "0 compares none.")
        if self.disk is not None and self.disk.exists() and not self.disk.is_dir():
            raise _wrong("disk", "a folder", str(self.disk), "Name another one; it is made when it is missing.")
        if self.gates is not None and not self.gates.is_dir():
            raise _wrong("gates", "a folder", str(self.gates), "Make gate files with `flowserve gate reuse`.")
        if self.remote:
            _check_url(self.remote)
            if not self.secret:
                raise _wrong("secret", "one beside `remote`", "none", "Set FLOWSERVE_SECRET, the same on all servers.")
        if not self.host_bytes and self.disk is None and not self.remote:
            raise _wrong("host_bytes", "memory, a disk folder or a remote tier", 0, "Give the store one of them.")
        if parsed(self.balanced, "balanced").name in PASTES:
            why = "It recomputes nothing of a chunk, which only `fast` allows: use e.g. first_k:16."
            raise _wrong("balanced", f"a policy other than {' and '.join(PASTES)}", self.balanced, why)
        parsed(self.fast, "fast")

    def policy(self, quality: Quality) -> Policy | None:
        """What is done for calls of a class, where it has passed the gate; None: nothing is pasted."""
        if quality is Quality.EXACT:
            return None
        return parsed(self.balanced if quality is Quality.BALANCED else self.fast, str(quality))


def parsed(text: str, where: str) -> Policy:
    """A policy as `policies.parse_policy` reads it. Raises ConfigError, naming the field `where`."""
    try:
        return parse_policy(text)
    except ConfigError as error:
        example = EXAMPLES.get(text.partition(":")[0], "first_k:16")
        raise ConfigError(f"ReuseSettings.{where}: {error}. Use e.g. {example}.") from error


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.netloc:
        known = " or ".join(f"{scheme}://" for scheme in SCHEMES)
        shown = f"{parts.scheme}://..." if parts.scheme else "a text without a scheme"  # a URL may hold a password
        raise _wrong("remote", f"{known} and an address", shown, "Use e.g. valkey://127.0.0.1:6379/0.")


def _wrong(name: str, expected: str, came: object, remedy: str) -> ConfigError:
    return ConfigError(f"ReuseSettings.{name}: expected {expected}; got {came!r}. {remedy}")
