"""The keys, values and defaults that a spec may have, read off its JSON Schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchtrain.spec.reading.places import join_key

__all__ = ["ANY_NAME", "KeyPath", "Node", "Outline"]

Node = Mapping[str, Any]
"""A schema of one value, with its references resolved."""

ANYTHING: Node = {"additionalProperties": True}
"""A value that the schema says nothing about."""

ANY_NAME = "NAME"
"""Stands in a key's pattern for a name that the user chooses, such as a column's."""


@dataclass
class KeyPath:
    """Where an error of pydantic lies in the document.

    Attributes:
        key: The dotted key, without the names that pydantic gives to branches of a union.
        name: The last name of the key; it may hold dots itself.
        pattern: The same key with `NAME` for names that the user chose.
        node: What the value may be, in the branch of a union that was taken.
        declared: What the value may be, in any branch.
        value: What it is; None where there is none.
        section: What the section above may be.
        unions: The keys at which a branch of a union was taken.
        is_name: The key itself is at fault, not its value.
    """

    node: Node
    value: Any
    declared: Node = field(default_factory=dict)
    key: str = ""
    pattern: str = ""
    name: str = ""
    section: Node = field(default_factory=dict)
    unions: list[str] = field(default_factory=list)
    is_name: bool = False


class Outline:
    """What a JSON Schema says about a spec's keys; nothing here knows a key by name."""

    def __init__(self, schema: Node) -> None:
        self._definitions = schema["$defs"]
        self.root: Node = schema

    def trace(self, loc: Sequence[str | int], document: Any) -> KeyPath:
        """Follow the location of a pydantic error through schema and document."""
        path = KeyPath(self.root, document, self.root)
        for part in loc:
            options = self.branches(path.node)
            if len(options) > 1:
                path.unions.append(path.key)
                path.node = _branch_of(options, path.value)
            elif "discriminator" in options[0]:
                path.node = self.kinds(options[0]).get(str(part), {})
            elif part == "[key]" and "propertyNames" in path.section:
                path.is_name = True
                break
            else:
                self._step(path, options[0], part)
        return path

    def branches(self, node: Node) -> list[Node]:
        """The alternatives of a value, null aside."""
        if "$ref" in node:
            return [self._definitions[node["$ref"].rpartition("/")[2]]]
        if "anyOf" not in node:
            return [node]
        options = [option for each in node["anyOf"] for option in self.branches(each)]
        return [option for option in options if option.get("type") != "null"]

    def kinds(self, node: Node) -> dict[str, Node]:
        """The sections that a `kind` chooses from, by its value."""
        if "discriminator" not in node:
            return {}
        kinds = {ref: kind for kind, ref in node["discriminator"]["mapping"].items()}
        return {kinds[each["$ref"]]: self.branches(each)[0] for each in node["oneOf"]}

    def has(self, key: str) -> bool:
        """Whether a spec may have a dotted key, whatever the kinds of the sections above it."""
        nodes: list[Node] = [self.root]
        for name in key.split("."):
            options = [option for node in nodes for option in self.branches(node)]
            sections = [kind for option in options for kind in self.kinds(option).values()]
            below = [_below(section, name) for section in (*options, *sections)]
            nodes = [node for node in below if node is not None]
        return bool(nodes)

    def places_of_keys(self) -> Iterator[tuple[str, str, str]]:
        """Yield the name, pattern and kind of every key at any depth; most have no kind."""
        yield from self._walk(self.root, "")

    def default_kind(self, key: str) -> dict[str, str]:
        """What a section that an override makes starts with: its default's `kind`, or nothing."""
        node: Node = self.root
        for name in key.split("."):
            options = self.branches(node)
            node = _child(options[0], name)[0] if len(options) == 1 else {}
        default = node.get("default")
        if not isinstance(default, Mapping) or "discriminator" not in node:
            return {}
        return {"kind": default["kind"]}

    def _step(self, path: KeyPath, section: Node, part: str | int) -> None:
        """Go down by one key or list item."""
        value = path.value
        node, is_chosen = _child(section, part)
        path.section, path.node, path.declared = section, node, node
        path.name = str(part)
        path.key = join_key(path.key, part)
        path.pattern = join_key(path.pattern, ANY_NAME if is_chosen else part)
        path.value = None
        if isinstance(value, dict):
            path.value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            path.value = value[part]

    def _walk(self, node: Node, pattern: str, kind: str = "") -> Iterator[tuple[str, str, str]]:
        for option in self.branches(node):
            for name, section in self.kinds(option).items():
                yield from self._walk(section, pattern, name)
            for name, child in option.get("properties", {}).items():
                yield name, join_key(pattern, name), kind
                yield from self._walk(child, join_key(pattern, name))
            values = option.get("additionalProperties")
            if isinstance(values, Mapping):
                yield from self._walk(values, join_key(pattern, ANY_NAME))


def _child(section: Node, part: str | int) -> tuple[Node, bool]:
    """What lies below a section or list, and whether the user chose its name."""
    if part in section.get("properties", {}):
        return section["properties"][part], False
    if isinstance(part, int):
        listed = section.get("prefixItems", [])
        return (listed[part] if part < len(listed) else section.get("items", {})), True
    values = section.get("additionalProperties")
    return (values, True) if isinstance(values, Mapping) else ({}, False)


def _below(section: Node, name: str) -> Node | None:
    """What lies below a section under a name; None where nothing may."""
    values = section.get("additionalProperties", False)
    is_open = isinstance(values, Mapping) or values is True
    node: Node | None = section.get("properties", {}).get(name)
    if node is not None or not is_open:
        return node
    return values if isinstance(values, Mapping) else ANYTHING


def _branch_of(options: Sequence[Node], value: Any) -> Node:
    """The alternative that a value of this shape was meant for."""
    shape = "object" if isinstance(value, dict) else "array" if isinstance(value, list) else ""
    return next((option for option in options if _shape(option) == shape), options[0])


def _shape(option: Node) -> Any:
    return "object" if "discriminator" in option else option.get("type")
