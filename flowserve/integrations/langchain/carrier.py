"""Which program a model call belongs to, from LangChain's callbacks to the hints of the server that is asked.

`Carrier` is a callback handler: LangChain tells it of every run, so it knows of each model call the root run, the thread and, inside
LangGraph, node, step, triggers and place in a fan-out. A callback cannot change a request; a model that carries
(`ChatFlowServe`), or whoever passes `**hints(...)` to a client by hand, asks `current` and writes it into the request. Nothing else
of the call is touched: results are the same with and without.
"""

from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables.config import ensure_config

from flowserve.engines.openai.dialects import DIALECTS, Hints
from flowserve.errors import UnknownName
from flowserve.graphs.caller import Caller

MOST_CHARS = 256
"""Of one value, as servers take it."""


@dataclass(frozen=True, slots=True)
class Calling:
    """What is known of the model call that is being made."""

    session: str
    """The thread, else the root run."""
    priority: int
    """Higher goes first; 0 says nothing."""
    caller: Caller


class _Call:
    """A call in the context that makes it. LangChain may tell its end in another context, so the end is marked here."""

    __slots__ = ("calling", "over")

    def __init__(self, calling: Calling) -> None:
        self.calling = calling
        self.over = False


_CALL: ContextVar[_Call | None] = ContextVar("flowserve_call", default=None)


class Carrier(BaseCallbackHandler):
    """For `config={"callbacks": [Carrier()]}` of any runnable; `attach` puts one into a graph.

    session: whose calls belong together; None: LangGraph's thread, else the root run. program: its name. priority: of all its calls,
    higher goes first, whatever the server's direction. ended: told the session when a root run that is one by itself has ended, however
    it did; a thread and a session by name may go on.
    """

    run_inline = True  # in the caller's own context, where the request will be made

    def __init__(
        self,
        *,
        session: str | None = None,
        program: str | None = None,
        priority: int = 0,
        ended: Callable[[str], object] | None = None,
    ) -> None:
        self.session = session
        self.program = program
        self.priority = priority
        self.ended = ended
        self._roots: dict[UUID, UUID] = {}  # of every run: the topmost that this handler was told of
        self._below: dict[
            UUID, list[UUID]
        ] = {}  # of every root that goes on; work begun ahead may outlive its parent, not these
        self._sessions: dict[UUID, str] = {}  # of roots that asked a model
        self._calls: dict[UUID, _Call] = {}

    def calling(self, metadata: Mapping[str, Any] | None, parent: UUID | None, run: UUID | None = None) -> Calling:
        """What a model call below `parent` is, by LangChain's metadata of it."""
        about = metadata or {}
        root = self._roots.get(parent, run) if parent is not None else run
        thread = about.get("thread_id")
        session = str(self.session or thread or root or "")[:MOST_CHARS]
        if root is not None:
            self._sessions.setdefault(root, session)
        caller = Caller(
            program=self.program,
            run=str(root) if root is not None else None,
            node=_text(about.get("langgraph_node")),
            step=_count(about.get("langgraph_step")),
            index=_index(about.get("langgraph_path")),
            triggers=tuple(str(each)[:MOST_CHARS] for each in about.get("langgraph_triggers", ()))[:64],
        )
        return Calling(session, self.priority, caller)

    # what LangChain tells: runs begin below others and end

    def on_chain_start(self, *_: Any, run_id: UUID, parent_run_id: UUID | None = None, **__: Any) -> None:
        root = run_id if parent_run_id is None else self._roots.get(parent_run_id, run_id)
        self._roots[run_id] = root
        self._below.setdefault(root, []).append(run_id)

    def on_tool_start(self, *_: Any, run_id: UUID, parent_run_id: UUID | None = None, **__: Any) -> None:
        self.on_chain_start(run_id=run_id, parent_run_id=parent_run_id)

    def on_chain_end(self, *_: Any, run_id: UUID, **__: Any) -> None:
        for below in self._below.pop(run_id, ()):
            self._roots.pop(below, None)
        session = self._sessions.pop(run_id, None)
        if session is not None and session == str(run_id) and self.ended is not None:
            self.ended(session)

    def on_chain_error(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.on_chain_end(run_id=run_id)

    def on_tool_end(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.on_chain_end(run_id=run_id)

    def on_tool_error(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.on_chain_end(run_id=run_id)

    # and model calls, which are roots themselves where nothing stands above them

    def on_chat_model_start(
        self,
        *_: Any,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **__: Any,
    ) -> None:
        call = self._calls[run_id] = _Call(self.calling(metadata, parent_run_id, run_id))
        _CALL.set(call)

    def on_llm_start(self, *args: Any, **told: Any) -> None:
        self.on_chat_model_start(*args, **told)

    def on_llm_end(self, *_: Any, run_id: UUID, **__: Any) -> None:
        call = self._calls.pop(run_id, None)
        if call is not None:
            call.over = True
        self.on_chain_end(run_id=run_id)

    def on_llm_error(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.on_llm_end(run_id=run_id)


def current() -> Calling | None:
    """The model call that LangChain is making here, or a call by hand in a node of an attached graph; else None."""
    call = _CALL.get()
    if call is not None and not call.over:
        return call.calling
    config = ensure_config()
    callbacks = config.get("callbacks")
    carrier = next((each for each in _handlers(callbacks) if isinstance(each, Carrier)), None)
    return (
        None if carrier is None else carrier.calling(config.get("metadata"), getattr(callbacks, "parent_run_id", None))
    )


def hints(dialect: str = "flowserve") -> dict[str, dict[str, Any]]:
    """`extra_body` and `extra_headers` of the call that is `current`, for OpenAI's client: `create(..., **hints("vllm"))`.

    dialect: the kind of server, one of `DIALECTS`: each is told what it takes, under its own names and in its own direction (at vLLM
    a lower priority goes first, at Dynamo and FlowServe a higher). Empty where no call is carried. Raises UnknownName.
    """
    if dialect not in DIALECTS:
        raise UnknownName("kind of server", dialect, list(DIALECTS))
    calling = current()
    if calling is None:
        return {}
    told = Hints(priority=-calling.priority, session=calling.session or None, caller=calling.caller)
    extra = DIALECTS[dialect].hint(told)
    return {name: dict(part) for name, part in (("extra_body", extra.body), ("extra_headers", extra.headers)) if part}


def joined(told: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Hints under what the caller wrote itself, which stands."""
    both = {
        key: joined(told[key], own[key])
        for key in told
        if isinstance(told[key], dict) and isinstance(own.get(key), dict)
    }
    return {**told, **own, **both}


def _handlers(callbacks: Any) -> Iterator[Any]:
    yield from callbacks if isinstance(callbacks, list) else getattr(callbacks, "handlers", ())


def _text(value: Any) -> str | None:
    return value[:MOST_CHARS] if isinstance(value, str) and value else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _index(path: Any) -> int | None:
    """A task that was sent has its place among its siblings in its path; one that was triggered has none."""
    match path:
        case ("__pregel_push", int(index), *_):
            return _count(index)
    return None
