"""JSON as it leaves the server: one encoder, one response class."""

import json
import math
from typing import Any

from pydantic_core import PydanticSerializationError, to_json
from starlette.responses import Response


def dumps(value: Any) -> bytes:
    """UTF-8 JSON of a JSON-like value, models and dataclasses included. Numbers that JSON has not are null.

    Text that UTF-8 cannot hold (a tool may return lone surrogates) is escaped.
    """
    try:
        return to_json(value, inf_nan_mode="null")
    except PydanticSerializationError:
        return json.dumps(_clean(value), ensure_ascii=True, allow_nan=False).encode()


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)


class JSON(Response):
    """A response whose content is already a JSON-like value."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dumps(content)
