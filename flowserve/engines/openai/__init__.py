"""The engine behind a URL: any server that speaks OpenAI's HTTP interface.

engine.py is the adapter, settings.py what it is told, dialects.py how servers differ. The PyPI package `openai` is not
used.
"""

from flowserve.engines.openai.engine import OpenAIEngine
from flowserve.engines.openai.settings import OpenAISettings

__all__ = ["OpenAIEngine", "OpenAISettings"]
