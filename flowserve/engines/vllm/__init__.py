"""The vLLM engine. Importing this package imports no vLLM: that runs in replica processes, or when an inline engine
starts.

engine.py is the server's side, host.py the side that has vLLM, wire.py what they say to each other.
"""

from flowserve.engines.vllm.engine import VLLMEngine
from flowserve.engines.vllm.settings import VLLMSettings

__all__ = ["VLLMEngine", "VLLMSettings"]
