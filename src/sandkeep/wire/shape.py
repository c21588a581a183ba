"""What all shapes share: unknown fields are refused in requests and ignored in answers (a newer server may add some)."""

from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Size = Annotated[int | str, Field(description="bytes, or a number with a unit: 512MiB, 8G", examples=["1GiB"])]
Duration = Annotated[float | str, Field(description="seconds, or like 30s, 5m, 1h30m, 7d", examples=["1h"])]
ShortText = Annotated[str, StringConstraints(max_length=4096)]

T = TypeVar("T")

# defer_build: a command line uses one or two of these shapes, and building them all takes 50 ms.


class Asked(BaseModel):
    """A request body: a misspelt field is an error, not a silent default."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, data: Any) -> Any:
        """JSON can write half of a surrogate pair; no file, database or answer could hold it."""
        _check_text(data)
        return data


def _check_text(data: Any) -> None:
    """Raises ValueError."""
    if isinstance(data, str):
        try:
            data.encode()
        except UnicodeEncodeError as error:
            raise ValueError("a string is not Unicode: it has half of a surrogate pair") from error
    elif isinstance(data, dict):
        for key, value in data.items():
            _check_text(key)
            _check_text(value)
    elif isinstance(data, list):
        for value in data:
            _check_text(value)


class Given(BaseModel):
    """An answer."""

    model_config = ConfigDict(extra="ignore", defer_build=True)


class Page(Given, Generic[T]):
    """One page of a list. `next_cursor` is absent on the last."""

    items: list[T]
    next_cursor: str | None = None
