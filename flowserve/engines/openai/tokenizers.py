"""The tokenizer of a server's model, from a folder or the hub."""

import threading

from flowserve.engines.base import Tokenizer
from flowserve.errors import ConfigError

_IMPORTING = threading.Lock()
"""transformers imports its parts when they are asked for, and fails when two threads ask first at one time."""


def load_tokenizer(source: str) -> Tokenizer:
    """Blocks, perhaps for a download. Raises ConfigError for what cannot be had; code of a model's own is not run."""
    try:
        with _IMPORTING:
            from transformers import AutoTokenizer

            from flowserve.engines.hf_tokenizer import HFTokenizer
    except ImportError as error:
        raise ConfigError(
            f"a server's tokenizer needs the package transformers: pip install 'transformers>=5' ({error})"
        ) from error
    try:
        return HFTokenizer(AutoTokenizer.from_pretrained(source, trust_remote_code=False))
    except ConfigError:
        raise
    except Exception as error:  # transformers raises whatever its parts raise
        raise ConfigError(
            f"tokenizer '{source}': expected a folder or hub name of a model's tokenizer; "
            f"{type(error).__name__}: {str(error)[:200]}"
        ) from error
