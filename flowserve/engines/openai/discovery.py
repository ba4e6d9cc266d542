"""What stands at a URL: waited for while it loads, then asked who it is and tried out.

`/v1/models` is all that a server must have. `/version`, `/server_info`, `/health` and `/metrics` are looked at where
they are. What a server does not say (does it tell token ids? does its tokenizer give ours the same ids?) is tried with
requests of one token.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flowserve.engines.base import Tokenizer
from flowserve.engines.openai.bodies import COMPLETIONS
from flowserve.engines.openai.client import Answer, Client
from flowserve.engines.openai.dialects import DIALECTS, Dialect, of_low_first
from flowserve.engines.openai.metrics import Load, read_load
from flowserve.errors import ConfigError, EngineError, UnknownName
from flowserve.ids import Seconds, Tokens

ASK_S: Seconds = 10.0
"""How long a server may take to answer a GET."""
LOOK_AGAIN_S: Seconds = 1.0
"""Between two looks at a server that is still loading."""
LOADING = (502, 503, 504)
"""What servers, and gateways before them, answer until the model is loaded."""
TRIAL_TEXT = "FlowServe reads: naïve café, 漢字, 12 x 34 = {...}"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says of itself."""

    cards: tuple[Mapping[str, Any], ...] = ()
    """Of `/v1/models`."""
    version: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    """SGLang's `/server_info`."""
    metrics: str = ""
    health: bool = False
    """It has `/health`."""

    def owner(self) -> str:
        return next((str(card["owned_by"]) for card in self.cards if card.get("owned_by")), "")


RULES: tuple[tuple[str, Callable[[Facts], bool]], ...] = (
    ("flowserve", lambda facts: facts.version.get("name") == "flowserve"),
    ("dynamo", lambda facts: "\ndynamo_frontend_" in facts.metrics),
    ("sglang", lambda facts: facts.owner() == "sglang" or "max_total_num_tokens" in facts.info),
    ("vllm", lambda facts: facts.owner() == "vllm" or "\nvllm:" in facts.metrics),
)
"""The first that fits; else `openai`. A router such as llm-d's shows the servers behind it: it must be named."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers."""

    dialect: Dialect
    model: str
    models: tuple[str, ...]
    """Names of the same weights and of their LoRA adapters; `model` is the first."""
    adapters: bool
    """Some of them are LoRA adapters."""
    root: str
    """Where its model comes from; "": not told."""
    max_context: Tokens
    """0: not told."""
    version: str
    window: int
    """Sequences that it computes at once; 0: not told."""
    step_tokens: Tokens
    """Prompt tokens that one step computes; 0: not told."""
    orders: bool | None
    """It orders by priority; None: not told."""
    load: Load | None
    """None: it tells none."""
    health: bool


async def facts_of(client: Client, timeout_s: Seconds, say: Say) -> Facts:
    """Waits while the server loads. Raises EngineError and ConfigError, saying what was tried."""
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    while True:
        models = await client.get("/v1/models", ASK_S)
        health = await client.get("/health", ASK_S)
        loading = next((answer.status for answer in (models, health) if answer.status in LOADING), None)
        if loading is None:
            break
        if loop.time() >= until:
            raise EngineError(f"{client.where}: not ready after {timeout_s:g} s (GET /v1/models, /health: {loading})")
        say(f"{client.where} is starting ({loading}) ...")
        await asyncio.sleep(min(LOOK_AGAIN_S, timeout_s))
    if models.status in (401, 403):
        raise ConfigError(f"{client.where} answered {models.status} to GET /v1/models: check `api_key`")
    cards = _cards(models)
    if not cards:
        raise ConfigError(
            f"{client.where}: expected a list of models at GET /v1/models; got {models.status}. "
            "Check `url`: it is what stands before /v1"
        )
    version, info, old_info, metrics = await asyncio.gather(
        *(client.get(path, ASK_S) for path in ("/version", "/server_info", "/get_server_info", "/metrics"))
    )
    return Facts(
        cards,
        _object(version),
        _object(info) or _object(old_info),
        metrics.body.decode(errors="replace") if metrics.status == 200 else "",
        health.status == 200,
    )


def server_of(facts: Facts, model: str, dialect: Dialect | None, where: str) -> Server:
    """model: "" is the first. dialect: None is found out. Raises ConfigError for a model that is not there."""
    names = [str(card["id"]) for card in facts.cards]
    if model and model not in names:
        raise ConfigError(f"{where}: {UnknownName('model', model, names)}")
    card = facts.cards[names.index(model) if model else 0]
    own = str(card["id"])
    base = _text(card.get("parent")) or own
    root = next((_text(c.get("root")) for c in facts.cards if c["id"] == base), "")
    adapters = [str(c["id"]) for c in facts.cards if _text(c.get("parent")) == base]
    aliases = [str(c["id"]) for c in facts.cards if root and c.get("root") == root]
    kind = dialect or DIALECTS[next((name for name, fits in RULES if fits(facts)), "openai")]
    if facts.info.get("schedule_low_priority_values_first") is True:
        kind = of_low_first(kind)
    orders = facts.info.get("enable_priority_scheduling")
    load = None if kind.metrics is None else read_load(facts.metrics, kind.metrics)
    return Server(
        dialect=kind,
        model=own,
        models=tuple(dict.fromkeys([own, *aliases, *adapters])),
        adapters=bool(adapters),
        root=_text(facts.info.get("tokenizer_path")) or root,
        max_context=_count(card.get("max_model_len")),
        version=_text(facts.version.get("version")) or _text(facts.info.get("version")),
        window=_count(facts.info.get("max_running_requests")),
        step_tokens=_count(facts.info.get("chunked_prefill_size")),
        orders=orders if isinstance(orders, bool) else None,
        load=replace(load, kv_tokens=load.kv_tokens or _count(facts.info.get("max_total_num_tokens")))
        if load
        else None,
        health=facts.health,
    )


async def tells_tokens(client: Client, server: Server, tokenizer: Tokenizer) -> str:
    """ "" when the server takes and tells the ids of `tokenizer`; else why not."""
    ids = tokenizer.encode(TRIAL_TEXT)
    trial = {"model": server.model, "prompt": ids, "max_tokens": 1, "temperature": 0.0}
    answer = await client.post(COMPLETIONS, {**trial, "return_token_ids": True})
    choice = _choice(answer)
    if choice is None or not isinstance(choice.get("token_ids"), list):
        return f"it tells no token ids (POST {COMPLETIONS}: {answer.status})"
    choice = _choice(await client.post(COMPLETIONS, {**trial, "echo": True}))
    echoed = None if choice is None else choice.get("text")
    # A server that does not echo cannot be compared.
    if isinstance(echoed, str) and echoed and not _bare(echoed).startswith(_bare(tokenizer.decode(ids))):
        return "its tokenizer is another one: it reads other text from the same ids"
    return ""


async def bounds_thinking(client: Client, server: Server, ids: Sequence[int]) -> bool:
    """Whether it takes a budget of thinking tokens: vLLM refuses one unless it was started for it."""
    if not server.dialect.thinking:
        return False
    body = {"model": server.model, "prompt": [*ids], "max_tokens": 1, server.dialect.thinking: 1}
    return (await client.post(COMPLETIONS, body)).status == 200


def _cards(answer: Answer) -> tuple[Mapping[str, Any], ...]:
    listed = _object(answer).get("data")
    if not isinstance(listed, list):
        return ()
    return tuple(card for card in listed if isinstance(card, dict) and isinstance(card.get("id"), str))


def _object(answer: Answer) -> Mapping[str, Any]:
    said = answer.json if answer.status == 200 else None
    return said if isinstance(said, dict) else {}


def _choice(answer: Answer) -> Mapping[str, Any] | None:
    choices = _object(answer).get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def _bare(text: str) -> str:
    """Without blanks, which decoders treat differently at the beginning of a text."""
    return "".join(text.split())
