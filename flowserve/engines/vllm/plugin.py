"""vLLM's general plug-in (entry point group `vllm.general_plugins`): loaded into every vLLM process of this
environment.

It does nothing unless a FlowServe host set an environment variable; then a process that vLLM began dies with the one
that began it. vLLM's own EngineCore would live on with its memory and its GPU when its parent is killed.
"""

import os

PARENT = "FLOWSERVE_VLLM"
"""Set by our hosts in their own environment, which vLLM's processes inherit."""


def register() -> None:
    if PARENT not in os.environ or os.environ[PARENT] == str(os.getpid()):
        return
    from flowserve.engines.vllm.lifelines import die_with

    die_with(os.getppid())
