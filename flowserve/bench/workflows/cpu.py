"""Whose processor time a load took: the servers', the client's, and that of whoever else is on the machine.

A comparison of latencies on shared cores means little in a round in which others were busy; so it is said.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from flowserve.bench.servers import Server

BUSY = (0, 1, 2, 5, 6)
"""Of /proc/stat: user, nice, system, interrupts, soft interrupts."""


def spent(servers: Sequence[Server]) -> dict[str, float]:
    """Seconds so far, by whom. Of others 0 where /proc does not tell."""
    ours, client = sum(server.cpu_s() for server in servers), time.process_time()
    return {"server_cpu_s": ours, "client_cpu_s": client, "other_cpu_s": max(0.0, _busy_s() - ours - client)}


def _busy_s() -> float:
    try:
        first = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return 0.0
    return sum(int(first[at]) for at in BUSY) / os.sysconf("SC_CLK_TCK")
