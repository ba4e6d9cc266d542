"""What LangGraph's SDK sends. Fields that nobody knows are ignored; known ones that would change what happens and are not had here
are refused by name (`refuse_unsupported`).
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flowserve.server.errors import BadRequest
from flowserve.server.schemas import Integer

MODES = ("values", "updates", "messages", "messages-tuple", "custom")
Multitask = Literal["reject", "enqueue", "interrupt", "rollback"]


class SDKIn(BaseModel):
    """Base of what the SDK sends."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class RunIn(SDKIn):
    """A run of an assistant."""

    assistant_id: str = Field(min_length=1, max_length=200)
    input: dict[str, Any] | None = None
    stream_mode: str | list[str] | None = None
    metadata: dict[str, Any] | None = None
    multitask_strategy: Multitask | None = None
    if_not_exists: Literal["create", "reject"] | None = None
    on_disconnect: Literal["cancel", "continue"] | None = None
    command: dict[str, Any] | None = None
    checkpoint_id: str | None = None
    checkpoint: dict[str, Any] | None = None
    interrupt_before: str | list[str] | None = None
    interrupt_after: str | list[str] | None = None
    webhook: str | None = None
    after_seconds: Integer | None = None

    @property
    def modes(self) -> tuple[str, ...]:
        """As asked for; `values` where nothing is."""
        given = self.stream_mode or "values"
        return (given,) if isinstance(given, str) else tuple(given)


class ThreadIn(SDKIn):
    """A thread to be made."""

    thread_id: str | None = Field(default=None, min_length=1, max_length=200)
    metadata: dict[str, Any] | None = None
    if_exists: Literal["raise", "do_nothing"] | None = None
    supersteps: list[Any] | None = None


class ThreadPatch(SDKIn):
    metadata: dict[str, Any] = Field(default_factory=dict)


class StateIn(SDKIn):
    """Values to put into a thread."""

    values: dict[str, Any] | None = None
    as_node: str | None = None
    checkpoint_id: str | None = None


class CheckpointIn(SDKIn):
    checkpoint: dict[str, Any] = Field(default_factory=dict)


class Search(SDKIn):
    """What to look for among threads or assistants."""

    metadata: dict[str, Any] | None = None
    values: dict[str, Any] | None = None
    ids: list[str] | None = None
    status: str | None = None
    graph_id: str | None = None
    name: str | None = None
    limit: Integer = Field(default=10, ge=1, le=1_000)
    offset: Integer = Field(default=0, ge=0)


class HistoryIn(SDKIn):
    limit: Integer = Field(default=10, ge=1, le=1_000)


class CancelMany(SDKIn):
    thread_id: str | None = None
    run_ids: list[str] | None = None
    status: Literal["pending", "running", "all"] | None = None


def refuse_unsupported(body: RunIn) -> None:
    """Refuse what a workflow's run does not have."""
    unknown = [mode for mode in body.modes if mode not in MODES]
    asked: list[tuple[str, bool, str]] = [
        ("stream_mode", bool(unknown), f"there are: {', '.join(MODES)}"),
        ("command", bool(body.command), "a workflow is not resumed or steered; send 'input'"),
        ("checkpoint_id", body.checkpoint_id is not None, "a run begins with the latest state of its thread"),
        ("checkpoint", bool((body.checkpoint or {}).get("checkpoint_id")), "a run begins with the latest state"),
        ("interrupt_before", bool(body.interrupt_before), "workflows have no interrupts"),
        ("interrupt_after", bool(body.interrupt_after), "workflows have no interrupts"),
        ("webhook", body.webhook is not None, "follow the run instead"),
        ("after_seconds", bool(body.after_seconds), "send it later"),
    ]
    for name, given, instead in asked:
        if given:
            shown = f" {', '.join(unknown)[:100]}" if name == "stream_mode" else ""
            raise BadRequest(422, "request_invalid", f"'{name}'{shown} is not supported here; {instead}", param=name)
