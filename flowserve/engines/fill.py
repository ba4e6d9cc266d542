"""Values for a JSON Schema, made up deterministically from what a prompt says.

The scripted engine answers with these when nobody wrote a reply. Strings are the prompt's quoted strings in order,
numbers the prompt's numbers that are within bounds; what the prompt does not give is the field's own name or its
lower bound.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator

from flowserve.errors import EngineError

MAX_DEPTH = 32
_QUOTED = re.compile(r'"([^"\n]{1,200})"|“([^”\n]{1,200})”|`([^`\n]{1,200})`')
_NUMBER = re.compile(r"(?<![\w.])-?\d{1,15}(?:\.\d{1,15})?(?![\w.]*\w)")
_FORMATS = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "email": "someone@example.com",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-0000-0000-000000000000",
}

Schema = Mapping[str, Any]


def fill(schema: Schema, prompt: str = "", prefer_answer: bool = False) -> Any:
    """A value that satisfies `schema`. `prefer_answer`: in a union of tool calls and an answer, take the answer.

    Raises EngineError when the schema asks for more than this can make up (a pattern, a condition).
    """
    value = _Filler(schema, prompt, prefer_answer).value(schema, "value", 0)
    wrong = next(iter(Draft202012Validator(dict(schema)).iter_errors(value)), None)
    if wrong is not None:
        raise EngineError(
            f"the scripted engine cannot make up a value for this schema ({wrong.message} at '{wrong.json_path}'). "
            "Give the node a reply."
        )
    return value


class _Filler:
    def __init__(self, root: Schema, prompt: str, prefer_answer: bool) -> None:
        self._root = root
        self._prompt = prompt
        self._prefer_answer = prefer_answer
        self._strings = ["".join(groups) for groups in _QUOTED.findall(prompt)]
        self._numbers = [float(text) for text in _NUMBER.findall(prompt)]

    def value(self, schema: Any, name: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise EngineError("the scripted engine cannot fill a schema that requires itself. Give the node a reply.")
        if not isinstance(schema, Mapping):
            return name  # `true` accepts anything
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._choice(schema["enum"])
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return self._union(schema, word, name, depth)
        kind = schema.get("type", _guess(schema))
        kinds = [kind] if isinstance(kind, str) else [*kind]
        match next((k for k in kinds if k != "null"), "null"):
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, name, depth)
            case "string":
                return self._string(schema, name)
            case "integer":
                return int(self._number(schema, whole=True))
            case "number":
                return self._number(schema, whole=False)
            case "boolean":
                return True
            case _:
                return None

    def _resolved(self, schema: Schema) -> Schema:
        """Without `$ref` and `allOf`."""
        merged: dict[str, Any] = dict(schema)
        for _ in range(MAX_DEPTH):
            parts: list[Any] = merged.pop("allOf", [])
            if "$ref" in merged:
                parts = [self._pointed(merged.pop("$ref")), *parts]
            if not parts:
                break
            for part in parts:
                merged = _merged(part, merged)
        return merged

    def _pointed(self, pointer: str) -> Any:
        at: Any = self._root
        for key in pointer.removeprefix("#").split("/")[1:]:
            at = at[key.replace("~1", "/").replace("~0", "~")]
        return at

    def _choice(self, options: Sequence[Any]) -> Any:
        """The option the prompt names, else the first."""
        named = (option for option in options if isinstance(option, str) and option and option in self._strings)
        return next(named, options[0])

    def _union(self, schema: Schema, word: str, name: str, depth: int) -> Any:
        rest = {key: value for key, value in schema.items() if key != word}
        options = [self._resolved(_merged(rest, option)) for option in schema[word]]
        return self.value(self._preferred(options), name, depth + 1)

    def _preferred(self, options: Sequence[Schema]) -> Schema:
        answers = [option for option in options if "answer" in option.get("properties", {})]
        tools = [option for option in options if option not in answers]
        if answers:
            if self._prefer_answer:
                return answers[0]
            return next((tool for tool in tools if self._mentions(tool)), answers[0])
        return next((tool for tool in tools if self._mentions(tool)), next(filter(_not_null, options), options[0]))

    def _mentions(self, option: Any) -> bool:
        return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", self._prompt) for name in _consts(option))

    def _object(self, schema: Schema, depth: int) -> dict[str, Any]:
        properties: Mapping[str, Any] = schema.get("properties", {})
        required = schema.get("required", ())
        names = [name for name in properties if name in required]
        names += [name for name in required if name not in properties]
        return {name: self.value(properties.get(name, True), name, depth + 1) for name in names}

    def _array(self, schema: Schema, name: str, depth: int) -> list[Any]:
        first = list(schema.get("prefixItems", ()))
        rest = schema.get("items", True)
        count = max(int(schema.get("minItems", 0)), len(first))
        if count == 0 and schema.get("maxItems", 1) > 0 and rest is not False:
            count = 1
        slots = [first[i] if i < len(first) else rest for i in range(count)]
        return [self.value(slot, name, depth + 1) for slot in slots]

    def _string(self, schema: Schema, name: str) -> str:
        low, high = int(schema.get("minLength", 0)), schema.get("maxLength", math.inf)
        pattern = schema.get("pattern")
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        for i, text in enumerate(self._strings):
            if low <= len(text) <= high and (pattern is None or re.search(pattern, text)):
                self._strings.append(self._strings.pop(i))  # the next field takes the next string
                return text
        text = (name + "." * (low - len(name)))[: None if high == math.inf else int(high)]
        return text

    def _number(self, schema: Schema, whole: bool) -> float:
        step = float(schema.get("multipleOf", 1 if whole else 0))
        low = float(schema.get("minimum", -math.inf))
        high = float(schema.get("maximum", math.inf))
        above = float(schema.get("exclusiveMinimum", -math.inf))
        below = float(schema.get("exclusiveMaximum", math.inf))

        def fits(x: float) -> bool:
            return low <= x <= high and above < x < below and (step == 0 or math.isclose(x / step, round(x / step)))

        for i, number in enumerate(self._numbers):
            if fits(number):
                return self._numbers.pop(i)
        unit = step or 1.0
        bottom = max(low, above)
        start = 0.0 if bottom == -math.inf else math.ceil(bottom / unit) * unit
        candidates = [0.0, start, start + unit, bottom, (bottom + min(high, below)) / 2, high, below - unit]
        return next((x for x in candidates if math.isfinite(x) and fits(x)), start)


def _guess(schema: Schema) -> str:
    for words, kind in ((("properties", "required"), "object"), (("items", "prefixItems", "minItems"), "array")):
        if any(word in schema for word in words):
            return kind
    return "string"


def _merged(base: Any, over: Any) -> dict[str, Any]:
    """Both schemas at once, as far as filling needs it."""
    base, over = (part if isinstance(part, Mapping) else {} for part in (base, over))
    merged = {**base, **over}
    if "properties" in base and "properties" in over:
        merged["properties"] = {**base["properties"], **over["properties"]}
    if "required" in base and "required" in over:
        merged["required"] = list(dict.fromkeys([*base["required"], *over["required"]]))
    return merged


def _not_null(option: Schema) -> bool:
    return option.get("type") != "null"


def _consts(schema: Any) -> Iterable[str]:
    if isinstance(schema, Mapping):
        if isinstance(schema.get("const"), str):
            yield schema["const"]
        for part in schema.values():
            yield from _consts(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _consts(part)


def dumps(value: Any) -> str:
    """As models write JSON: compact enough, readable, not escaped."""
    return json.dumps(value, ensure_ascii=False)
