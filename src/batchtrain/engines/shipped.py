"""A value that is costly to make, sent to other processes as the way in which it is made."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

__all__ = ["Shipped"]

KEPT = 2
"""A process keeps this many values, the ones it used last."""

Value = TypeVar("Value")

_made: OrderedDict[str, Any] = OrderedDict()


class Shipped(Generic[Value]):
    """A value in the process that has it; elsewhere it is made once, when it is first used."""

    def __init__(self, key: str, make: Callable[[], Value], value: Value | None = None) -> None:
        """Take a value, or only the way to make it.

        Args:
            key: What tells values apart: equal keys stand for equal values.
            make: A function that other processes can call, such as a partial of a module's.
            value: What it would give, where that is at hand.
        """
        self._key = key
        self._make = make
        self._value = value
        self._has_travelled = False

    def get(self) -> Value:
        """The value.

        Raises:
            BatchtrainError: What making it raises.
        """
        if self._value is None and not self._has_travelled:
            # The process that asks for the work reads and verifies anew each time.
            self._value = self._make()
        if self._value is None:
            if self._key not in _made:
                _made[self._key] = self._make()
            _made.move_to_end(self._key)
            self._value = _made[self._key]
            while len(_made) > KEPT:
                _made.popitem(last=False)
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        """The value stays where it is."""
        return _arrived, (self._key, self._make)


def _arrived(key: str, make: Callable[[], Any]) -> Shipped[Any]:
    shipped: Shipped[Any] = Shipped(key, make)
    shipped._has_travelled = True
    return shipped
