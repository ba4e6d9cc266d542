"""Settings of a runtime: frozen, with units in the names, checked when built."""

from dataclasses import dataclass, fields

from flowserve.errors import ConfigError
from flowserve.ids import Seconds


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """How much a runtime takes on and how it orders it."""

    policy: str = "critical_path"
    """Name in `core.priority.POLICIES`."""
    max_live_runs: int = 512
    """Runs accepted and not yet ended; one more is answered with Overloaded."""
    tool_window: int = 32
    """Tool calls at once."""
    search_window: int = 16
    """Searches at once."""
    default_timeout_s: Seconds = 600.0
    """Deadline of a run that names none."""
    max_timeout_s: Seconds = 86_400.0
    kept_runs: int = 1_000
    """Ended runs whose events and result are still answered for; the oldest goes first."""
    kept_events: int = 1_000_000
    """Events of ended runs kept in memory, all runs together; the oldest run goes first."""
    cache_entries: int = 4_096
    """Results of `cache=True` nodes kept in memory."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
                raise ConfigError(f"RuntimeConfig.{item.name}: expected a number above 0, got {value}")
