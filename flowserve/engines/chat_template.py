"""Chat templates as models publish them: Jinja2 in a sandbox, with Hugging Face's settings and helper functions.

Templates come with model files, so they are not trusted: no attribute access to internals, nothing to change, and
an output of bounded size.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from flowserve.errors import InputError

FALLBACK_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}{{ call['function'] | tojson }}{% endfor %}{{ '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For models without a template: "User: ...", a blank line, "Assistant:"."""
FALLBACK_STOP = ("\nUser:", "\nSystem:", "\nTool:")
"""A model without a template does not know where a turn ends."""
MAX_RENDERED = 16_000_000
"""Characters; a template that writes more is refused."""


class ChatTemplate:
    """A compiled template. Raises InputError when it does not parse."""

    def __init__(self, source: str) -> None:
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(f"the model's chat template does not parse: {error.message}") from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """Raises jinja2.TemplateError when the template refuses what it got."""
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(**variables):
                size += len(piece)
                if size > MAX_RENDERED:
                    raise InputError(f"the chat template wrote more than {MAX_RENDERED} characters")
                pieces.append(piece)
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from error
        return "".join(pieces)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks assistant text for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """What chat templates are written for: Hugging Face's settings and helper functions, sandboxed."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, does not escape HTML characters."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
