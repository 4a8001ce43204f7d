"""What the places that a spec names may look like: local paths, without credentials."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from typing import Any

from batchtrain.spec.reading.places import Fault, Places

__all__ = ["location_faults"]

LOCATIONS = (
    (("data", "source"), "a file, a glob, a folder or `sample:NAME`"),
    *(
        (("data", "split", split), "a file, a glob or a folder")
        for split in ("train", "valid", "test")
    ),
    (("storage",), "a folder, or an address of an object store such as s3://bucket/runs"),
    (("tracking", "tensorboard", "dir"), "a local folder"),
    (("tracking", "mlflow", "uri"), "a folder, or the address of a tracking server"),
)

OBJECT_STORES = ("s3://", "gs://", "az://")
"""A storage may be an address that starts so; the spec itself checks the rest of it."""

ADDRESSES = ("tracking.mlflow.uri",)
"""What may be any address; the spec itself checks its scheme."""

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
ADDRESS = re.compile(r"([A-Za-z0-9+.-]*)://")
MAX_SCHEME = 20


def location_faults(
    document: Any, places: Places, *, planned: Container[str] = ()
) -> Iterator[Fault]:
    """Find addresses, credentials and control characters where a local path must be.

    No message repeats what it found: an address may hold a secret.

    Args:
        document: The spec as plain values.
        places: Where its keys are.
        planned: The keys at which an address was refused already, as one that is to come.
    """
    for names, wanted in LOCATIONS:
        value = document
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, str):
            key = ".".join(names)
            complaints = [*_secrets(value), *_control_characters(value, wanted)]
            is_object_store = key == "storage" and value.startswith(OBJECT_STORES)
            if key not in planned and key not in ADDRESSES and not is_object_store:
                complaints += _addresses(value, wanted)
            for message, hint in complaints:
                yield Fault(places.of_value(key), key, message, hint)


def _secrets(value: str) -> Iterator[tuple[str, str]]:
    address = ADDRESS.search(value)
    if address and "@" in value[address.end() :]:
        hint = "Remove them, and change the secret: it was written down here"
        yield "found credentials in an address", hint


def _control_characters(value: str, wanted: str) -> Iterator[tuple[str, str]]:
    control = CONTROL.search(value)
    if control:
        found = f"the control character U+{ord(control.group()):04X}"
        yield f"expected {wanted}, found {found}", "Write the path on one line, without escapes"


def _addresses(value: str, wanted: str) -> Iterator[tuple[str, str]]:
    address = ADDRESS.search(value)
    if address:
        scheme = address[1][-MAX_SCHEME:]
        is_file = scheme.lower() == "file"
        hint = "Write the path without file://" if is_file else "Copy it to a local folder first"
        yield f"expected {wanted}, found an address ({scheme}://)", hint
