"""Calls of a Protocol's methods as JSON, by the type hints of the Protocol itself: both ends share one description.

Arguments and results are standard dataclasses, enums and containers; pydantic checks them on the way in.
"""

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from functools import cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError


class CodecError(Exception):
    """What came over the wire does not fit the method's types."""


class Method:
    """One method of a Protocol: how to encode and decode its arguments and its result."""

    def __init__(self, protocol: type, name: str) -> None:
        function = getattr(protocol, name)
        hints = get_type_hints(function)
        self.name = name
        result = hints.pop("return")
        self._result: TypeAdapter[Any] = TypeAdapter(result if inspect.iscoroutinefunction(function) else None)
        self._arguments = {key: TypeAdapter(kind) for key, kind in hints.items() if kind != AsyncIterator[bytes]}
        self.takes_bytes = len(self._arguments) < len(hints)
        self._order = [key for key in inspect.signature(function).parameters if key in self._arguments]

    def encode_arguments(self, positional: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
        values = {**dict(zip(self._order, positional, strict=False)), **named}
        return {key: self._arguments[key].dump_python(value, mode="json") for key, value in values.items()}

    def decode_arguments(self, data: Any) -> dict[str, Any]:
        """Raises CodecError."""
        if not isinstance(data, dict) or set(data) != set(self._order):
            raise CodecError(f"{self.name} takes {', '.join(self._order) or 'nothing'}")
        try:
            return {key: self._arguments[key].validate_python(value) for key, value in data.items()}
        except ValidationError as error:
            raise CodecError(f"{self.name}: {error.errors()[0]['msg']}") from error

    def encode_result(self, value: Any) -> Any:
        return self._result.dump_python(value, mode="json")

    def decode_result(self, data: Any) -> Any:
        """Raises CodecError."""
        try:
            return self._result.validate_python(data)
        except ValidationError as error:
            raise CodecError(f"the answer of {self.name}: {error.errors()[0]['msg']}") from error


@cache
def method(protocol: type, name: str) -> Method:
    """Raises CodecError for a name that is not a public method."""
    if name.startswith("_") or not inspect.iscoroutinefunction(getattr(protocol, name, None)):
        raise CodecError(f"there is no method {name}")
    found = Method(protocol, name)
    if found.takes_bytes:
        raise CodecError(f"{name} takes bytes as they come")
    return found


@cache
def upload(protocol: type, name: str) -> Method:
    """Of one whose argument `content` are bytes as they come; that is not encoded. Raises CodecError for a name that is none."""
    if not name.startswith("_") and inspect.iscoroutinefunction(getattr(protocol, name, None)):
        found = Method(protocol, name)
        if found.takes_bytes:
            return found
    raise CodecError(f"there is no upload {name}")


@cache
def stream(protocol: type, name: str) -> Method:
    """Of one that gives bytes as they come; only its arguments are encoded. Raises CodecError for a name that is none."""
    function = getattr(protocol, name, None)
    if name.startswith("_") or get_type_hints(function).get("return") != AsyncGenerator[bytes, None]:
        raise CodecError(f"there is no stream {name}")
    return Method(protocol, name)


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
