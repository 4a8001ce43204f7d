"""A strict YAML reader that knows where everything was written.

It stands on PyYAML's events: there is no constructor that could build an object, and no alias
is ever followed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.scanner import Scanner

from batchtrain.errors import SpecError
from batchtrain.spec.reading.places import Fault, Place, Places, join_key, problems_of
from batchtrain.spec.reading.scalars import scalar_of
from batchtrain.spec.reading.shown import shown
from batchtrain.spec.reading.yaml_syntax import explain_syntax_error

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_VALUES", "Document", "read_value", "read_yaml"]

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_VALUES = 100_000
MAX_SHOWN_NUMBER = 40

STARTER = "Write a starter spec with `batchtrain init DATA --target COLUMN`"
# What YAML cannot hold as it stands: control characters, lone surrogates, non-characters.
NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

# PyYAML's stubs name two kinds of mark; both have a line and a column from 0.
Locate = Callable[[Any], Place]


@dataclass(frozen=True)
class Document:
    """A YAML document as plain values, with the place of each.

    Attributes:
        value: Dicts, lists, text, numbers, booleans and None; None also where a value was refused.
        faults: What was refused and did not keep the rest from being read.
    """

    value: Any
    places: Places
    faults: tuple[Fault, ...]


def read_yaml(text: str, file: str, *, starter: str = STARTER) -> Document:
    """Read one document whose top level is a section; JSON is read as the YAML that it is.

    Args:
        text: The whole file.
        file: Its name, for messages.
        starter: What to do where there is nothing in it.

    Raises:
        SpecError: If nothing can be read: a syntax error, control characters, more than
            `MAX_BYTES`, `MAX_DEPTH` or `MAX_VALUES`, no section, or more than one document.
    """
    root = Place(0, 0, file)

    def locate(mark: Any) -> Place:
        return _in_file(file, mark.line + 1, mark.column + 1)

    _check_text(text, root)
    document = _read(text, root, locate)
    if not isinstance(document.value, dict):
        place, found = document.places.values.get("", root), shown(document.value)
        is_empty = document.value is None
        message = "the file is empty" if is_empty else f"expected `key: value`, found {found}"
        raise SpecError(problems_of([*document.faults, Fault(place, "", message, starter)]))
    return document


def read_value(text: str, place: Place) -> Document:
    """Read the value of an override: a scalar, or a list or section in brackets.

    Raises:
        SpecError: As `read_yaml`; every problem is at `place`.
    """
    _check_text(text, place)
    return _read(text, place, lambda _: place, is_override=True)


def _in_file(file: str, line: int, column: int) -> Place:
    return Place(line, column, f"{file}:{line}:{column}")


def _check_text(text: str, root: Place) -> None:
    """Refuse what PyYAML would take long over, or fail on without a line number."""
    num_bytes = len(text.encode(errors="surrogatepass"))
    if num_bytes > MAX_BYTES:
        message = f"expected at most {MAX_BYTES} bytes, found {num_bytes}"
        raise SpecError(problems_of([Fault(root, "", message, "A spec holds no data")]))
    bad = NOT_TEXT.search(text)
    if bad:
        before = text[: bad.start()]
        line, column = before.count("\n") + 1, bad.start() - before.rfind("\n")
        place = _in_file(root.text, line, column) if root.line == 0 else root
        message = f"expected text, found the control character U+{ord(bad.group()):04X}"
        raise SpecError(problems_of([Fault(place, "", message, "Remove it")]))


def _read(text: str, root: Place, locate: Locate, *, is_override: bool = False) -> Document:
    builder = _Builder(_Events(text), locate)
    try:
        value = builder.document(is_override=is_override)
    except _UnreadableError as error:
        fault = error.fault
    except yaml.MarkedYAMLError as error:
        message, hint, mark = explain_syntax_error(error)
        fault = Fault(locate(mark) if mark else root, "", message, hint)
    except (ValueError, OverflowError):
        # PyYAML lets chr() and int() fail on what an escape or a directive holds.
        fault = Fault(locate(builder.events.get_mark()), "", "this cannot be read as YAML")
    else:
        places = Places(root, builder.keys, builder.values)
        return Document(value, places, tuple(builder.faults))
    raise SpecError(problems_of([*builder.faults, fault]))


class _UnreadableError(Exception):
    """What ends the reading."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class _Events(Reader, Scanner, Parser):
    """PyYAML up to its events: no resolver and no constructor above them."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)

    def scan_to_next_token(self) -> None:
        """Take tabs between brackets as spaces, as JSON files have them."""
        super().scan_to_next_token()
        while self.flow_level and self.peek() == "\t":
            self.forward()
            super().scan_to_next_token()


@dataclass
class _Builder:
    """Turns events into plain values; the first place of a key is the one that stays."""

    events: Any
    locate: Locate
    keys: dict[str, Place] = field(default_factory=dict)
    values: dict[str, Place] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    num_values: int = 0

    def document(self, *, is_override: bool) -> Any:
        self.events.get_event()
        if self.events.check_event(yaml.StreamEndEvent):
            return None
        start = self.events.get_event()
        if start.version or start.tags:
            self._refuse("", start, "found a YAML directive", "Remove the line that starts with %")
        first = self.events.peek_event()
        if is_override and isinstance(first, yaml.CollectionStartEvent) and not first.flow_style:
            message = "expected one value, found a section or list without brackets"
            raise _UnreadableError(
                Fault(self.locate(first.start_mark), "", message, "Write {a: b}, [a, b] or 'a: b'")
            )
        value = self._node("", depth=1)
        self.events.get_event()
        if not self.events.check_event(yaml.StreamEndEvent):
            place = self.locate(self.events.peek_event().start_mark)
            message = "expected one document, found a second one"
            raise _UnreadableError(Fault(place, "", message, "Write one file for each spec"))
        return value

    def _node(self, key: str, depth: int) -> Any:
        event = self.events.get_event()
        place = self.locate(event.start_mark)
        self.values.setdefault(key, place)
        self.num_values += 1
        if depth > MAX_DEPTH or self.num_values > MAX_VALUES:
            limit = f"{MAX_DEPTH} levels" if depth > MAX_DEPTH else f"{MAX_VALUES} values"
            message = f"expected at most {limit}, found more"
            raise _UnreadableError(Fault(place, "", message, "A spec holds no data"))
        if isinstance(event, yaml.AliasEvent):
            self._refuse(key, event, "found an alias (`*`)", "Write the value out here")
            return None
        self._refuse_properties(key, event)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(key, depth)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(key, depth)
        return self._scalar(key, event)

    def _mapping(self, key: str, depth: int) -> dict[str, Any]:
        section: dict[str, Any] = {}
        while not self.events.check_event(yaml.MappingEndEvent):
            event = self.events.peek_event()
            name = self._name(key, depth)
            child = join_key(key, name)
            if name in section:
                first = self.keys[child].text
                hint = f"It is first given at {first}; keep one of the two"
                self._refuse(child, event, "the key appears twice", hint, covers=False)
            self.keys.setdefault(child, self.locate(event.start_mark))
            value = self._node(child, depth + 1)
            section.setdefault(name, value)
        self.events.get_event()
        return section

    def _sequence(self, key: str, depth: int) -> list[Any]:
        items: list[Any] = []
        while not self.events.check_event(yaml.SequenceEndEvent):
            child = join_key(key, len(items))
            self.keys.setdefault(child, self.locate(self.events.peek_event().start_mark))
            items.append(self._node(child, depth + 1))
        self.events.get_event()
        return items

    def _name(self, section: str, depth: int) -> str:
        """Read a key, which must be text."""
        event = self.events.peek_event()
        if not isinstance(event, yaml.ScalarEvent):
            child = join_key(section, "?")
            self._node(child, depth + 1)
            self._refuse(child, event, "expected text as a key, found a list, section or alias")
            return "?"
        self.events.get_event()
        name = self._text(join_key(section, "?"), event)
        self._refuse_properties(join_key(section, name), event)
        if event.implicit[0] and not _is_text(name):
            message = f"keys are text, found {name or 'nothing'} without quotes"
            hint = f"Write '{name}' with the quotes" if name else ""
            self._refuse(join_key(section, name), event, message, hint)
        return name

    def _scalar(self, key: str, event: yaml.ScalarEvent) -> Any:
        text = self._text(key, event)
        if not event.implicit[0]:
            return text
        try:
            return scalar_of(text)
        except ValueError as error:
            message = f"{error}, found {text[:MAX_SHOWN_NUMBER]}"
            self._refuse(key, event, message, "Put it in quotes if it is text")
            return None

    def _text(self, key: str, event: yaml.ScalarEvent) -> str:
        """A scalar's text; JSON writes what lies above U+FFFF as two escapes."""
        try:
            text: str = event.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self._refuse(key, event, "found half of a surrogate pair", "Write the character itself")
            return ""
        control = CONTROL.search(text)
        if control:
            message = f"expected text, found the control character U+{ord(control.group()):04X}"
            self._refuse(key, event, message, "Remove it")
            return CONTROL.sub("", text)
        return text

    def _refuse_properties(self, key: str, event: yaml.NodeEvent) -> None:
        if event.anchor is not None:
            self._refuse(key, event, "found an anchor (`&`)", "Remove it, and write values out")
        if getattr(event, "tag", None) is not None:
            self._refuse(key, event, "found a tag (`!`)", "Remove it; a spec holds plain values")

    def _refuse(
        self, key: str, event: yaml.Event, message: str, hint: str = "", *, covers: bool = True
    ) -> None:
        place = self.locate(event.start_mark)
        self.faults.append(Fault(place, key, message, hint, covers))


def _is_text(name: str) -> bool:
    try:
        return isinstance(scalar_of(name), str)
    except ValueError:
        return False
