"""From a server's address to what an engine can do with it: facts, a tokenizer that both share, capabilities."""

import asyncio
from dataclasses import dataclass

from flowserve.engines.base import Capabilities, Tokenizer
from flowserve.engines.openai.client import Client
from flowserve.engines.openai.dialects import DIALECTS
from flowserve.engines.openai.discovery import Say, Server, bounds_thinking, facts_of, server_of, tells_tokens
from flowserve.engines.openai.settings import OpenAISettings
from flowserve.engines.openai.tokenizers import load_tokenizer
from flowserve.engines.words import WordTokenizer
from flowserve.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Met:
    """A server that an engine can work with."""

    server: Server
    tokenizer: Tokenizer
    """The server's, or one that only estimates."""
    capabilities: Capabilities
    in_words: str
    """Why it is asked in words; "": it is asked in tokens."""


async def meet(client: Client, settings: OpenAISettings, say: Say) -> Met:
    """Waits while the server loads. Raises ConfigError and EngineError."""
    facts = await facts_of(client, settings.start_timeout_s, say)
    dialect = DIALECTS.get(settings.dialect)
    server = server_of(facts, settings.model, dialect, client.where)
    tokenizer, in_words = await _shared_tokenizer(client, settings.tokenizer, server)
    thinking = not in_words and await bounds_thinking(client, server, tokenizer.encode("Hello"))
    if settings.kv_events and (in_words or server.dialect.name != "vllm"):
        raise ConfigError(f"{client.where}: kv_events: expected a vLLM server that tells token ids; got another")
    return Met(server, tokenizer, _capabilities(settings, server, not in_words, thinking), in_words)


async def _shared_tokenizer(client: Client, wanted: str, server: Server) -> tuple[Tokenizer, str]:
    """(the tokenizer, why the server is asked in words)."""
    if not (wanted or server.root):
        return WordTokenizer(), "it does not say where its tokenizer is"
    try:
        tokenizer = await asyncio.to_thread(load_tokenizer, wanted or server.root)
    except ConfigError as error:
        if wanted:
            raise
        return WordTokenizer(), str(error)
    why = await tells_tokens(client, server, tokenizer)
    if why and wanted:
        raise ConfigError(f"{client.where}: tokenizer '{wanted}': {why}")
    return tokenizer, why


def _capabilities(settings: OpenAISettings, server: Server, tokens: bool, thinking: bool) -> Capabilities:
    kind = server.dialect
    orders = kind.orders
    if orders is None:
        orders = bool(server.orders if settings.priority is None else settings.priority)
    limits = [limit for limit in (server.max_context, settings.max_context) if limit]
    return Capabilities(
        models=server.models,
        max_context=min(limits, default=0),
        priority=orders,
        logprobs=kind.logprobs and tokens,
        schema="schema" in kind.constraints,
        regex="regex" in kind.constraints,
        grammar="grammar" in kind.constraints,
        prefix_reuse=kind.prefix_reuse and tokens,
        lora=server.adapters,
        thinking_budget=thinking,
        # Tokens that are drawn depend on the batch, unless a server was started to be invariant; none tells.
        deterministic_seed=False,
        tokens=tokens,
        reprioritise=orders and tokens,
        kv_events=bool(settings.kv_events),
        restart=True,
    )
