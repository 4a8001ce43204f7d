"""A storage in a bucket of an object store: S3 and what speaks it, Google Cloud, Azure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from batchtrain.errors import StorageError, StorageUnavailableError
from batchtrain.points import passed
from batchtrain.spec.run import storage_address_problem
from batchtrain.storage.base import check_key

__all__ = ["ObjectStorage"]

PART_BYTES = 16 * 2**20
"""Longer data travel in several requests, since each must end within the client's time limit."""

STATUS = re.compile(r"status code: (\d{3})")
CODE = re.compile(r"<Code>(\w{1,64})</Code>")

MAY_PASS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
MAY_PASS_BY_NAME = frozenset({"RequestTimeout", "SlowDown", "InternalError"})
UNDECIDED = "ConditionalRequestConflict"
NO_RIGHT = frozenset({401, 403})
CREDENTIALS_BY_NAME = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired"})

METADATA_SERVICES = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")
"""Where the client asks for credentials when the environment holds none."""

CREDENTIALS = "Check the credentials in the environment and their rights: read, write, list, delete"


class ObjectStorage:
    """Keys are objects below an address; each appears whole, by one request.

    Exclusive creation is a conditional put (`If-None-Match: *` or its like). Credentials, region
    and endpoint come from the environment, such as `AWS_ACCESS_KEY_ID`, `AWS_REGION`,
    `AWS_ENDPOINT_URL`; no message ever repeats what the client or the server said, since that may
    hold a secret.

    Long data that a killed process was writing stay with some stores as parts of an upload that
    nobody lists; a lifecycle rule of the bucket removes them.
    """

    def __init__(self, address: str) -> None:
        """Open a store; no request is made yet.

        Args:
            address: Such as `s3://bucket/folder`, `gs://bucket/folder` or `az://container/folder`.

        Raises:
            StorageError: If the address is none, or the library for object stores is missing.
        """
        problem = storage_address_problem(address)
        if problem:
            raise StorageError(f"storage: {problem}")
        self.address = address.rstrip("/")
        self._obstore = _library()
        with self._explained(""):
            # It would repeat a put in silence and take its own object for another's: we retry.
            self._store: Any = self._obstore.store.from_url(
                self.address, retry_config={"max_retries": 0}
            )

    def __reduce__(self) -> tuple[type[ObjectStorage], tuple[str]]:
        """Open it anew from its address, with the environment of the other process."""
        return type(self), (self.address,)

    def url(self, key: str = "") -> str:
        """The URI of `key`."""
        if not key:
            return self.address
        check_key(key)
        return f"{self.address}/{key}"

    def read(self, key: str) -> bytes:
        """See `Storage.read`."""
        check_key(key)
        with self._explained(key):
            passed("storage.read")
            return self._parts(key)

    def size(self, key: str) -> int | None:
        """See `Storage.size`."""
        found = self._head(key)
        return None if found is None else int(found["size"])

    def modified(self, key: str) -> float | None:
        """See `Storage.modified`."""
        found = self._head(key)
        return None if found is None else float(found["last_modified"].timestamp())

    def write(self, key: str, data: bytes) -> None:
        """See `Storage.write`."""
        check_key(key)
        with self._explained(key, must_exist=False):
            passed("storage.opened")
            self._obstore.put(self._store, key, data, chunk_size=PART_BYTES, max_concurrency=2)
        passed("storage.done")

    def create(self, key: str, data: bytes) -> bool:
        """See `Storage.create`."""
        check_key(key)
        with self._explained(key, must_exist=False):
            passed("storage.opened")
            try:
                self._obstore.put(self._store, key, data, mode="create", use_multipart=False)
            except self._obstore.exceptions.AlreadyExistsError as error:
                # S3 answers so as well where it could not decide between two requests at once.
                if UNDECIDED in str(error):
                    raise
                return False
        passed("storage.done")
        return True

    def leftovers(self) -> list[str]:
        """See `Storage.leftovers`: there are none, an object appears whole."""
        return []

    def list(self, prefix: str) -> list[str]:
        """See `Storage.list`."""
        if prefix:
            check_key(prefix)
        with self._explained(prefix, must_exist=False):
            pages = self._obstore.list(self._store, prefix=prefix or None, chunk_size=1000)
            return sorted(str(found["path"]) for page in pages for found in page)

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        check_key(key)
        try:
            with self._explained(key):
                self._obstore.delete(self._store, key)
        except FileNotFoundError:
            pass

    def _head(self, key: str) -> Any:
        """What the store says of an object; None where there is none."""
        check_key(key)
        try:
            with self._explained(key):
                return self._obstore.head(self._store, key)
        except FileNotFoundError:
            return None

    def _parts(self, key: str) -> bytes:
        """The bytes of one object, all of one version of it."""
        found = self._obstore.get(self._store, key)
        size, tag = found.meta["size"], found.meta["e_tag"]
        if size <= PART_BYTES:
            return bytes(found.bytes())
        same = {"if_match": tag} if tag else {}
        parts = []
        for start in range(0, size, PART_BYTES):
            options = {"range": (start, min(start + PART_BYTES, size)), **same}
            parts.append(bytes(self._obstore.get(self._store, key, options=options).bytes()))
        return b"".join(parts)

    @contextmanager
    def _explained(self, key: str, *, must_exist: bool = True) -> Iterator[None]:
        """Turn what the client raises into our errors, without its words.

        Args:
            key: What the operation is about.
            must_exist: Whether a missing object is the caller's affair; else it is the bucket.
        """
        try:
            yield
        except (self._obstore.exceptions.BaseError, FileNotFoundError, ValueError) as error:
            # Without its cause, which may hold a secret that a traceback would show.
            raise _our_error(error, self.url(key), must_exist=must_exist) from None


def _library() -> ModuleType:
    """The library that speaks to object stores.

    Raises:
        StorageError: If it is not installed.
    """
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError as error:
        raise StorageError(
            "storage: expected the package obstore for an address such as s3://bucket/folder, "
            f"found none ({error}). Run: pip install 'batchtrain[object-store]'"
        ) from error
    return obstore


def _our_error(error: Exception, where: str, *, must_exist: bool) -> Exception:
    """The error of ours that says what happened to `where`."""
    text = str(error)
    status = int(found[1]) if (found := STATUS.search(text)) else None
    name = found[1] if (found := CODE.search(text)) else ""
    answer = " ".join(each for each in (str(status or ""), name) if each)
    is_bucket = name in {"NoSuchBucket", "ContainerNotFound"} or not must_exist
    if isinstance(error, FileNotFoundError) and not is_bucket:
        return FileNotFoundError(where)
    if any(service in text for service in METADATA_SERVICES):
        found_what = "found no credentials in the environment, and this machine gives none"
        kind = StorageError if status in NO_RIGHT else StorageUnavailableError
        return kind(f"storage {where}: {found_what}. {CREDENTIALS}")
    if _may_pass(error, text, status, name):
        answer = f"the answer {answer}" if answer else "no answer, or a part of one"
        return StorageUnavailableError(
            f"storage {where}: expected an answer, found {answer}. "
            "Check the network, the endpoint, and whether the service is up"
        )
    return StorageError(_refusal(where, text, status, name, answer))


def _may_pass(error: Exception, text: str, status: int | None, name: str) -> bool:
    if status is None:
        is_about_request = "HTTP error" in text and "builder error" not in text
        return is_about_request or "timed out" in text
    has_changed = type(error).__name__ == "PreconditionError"
    return has_changed or status in MAY_PASS or name in MAY_PASS_BY_NAME


def _refusal(where: str, text: str, status: int | None, name: str, answer: str) -> str:
    """The sentence about an error that stays however often it is tried."""
    if status == 404:
        bucket = "/".join(where.split("/")[:3])
        return f"storage {where}: expected the bucket {bucket}, found none. Make it, or check it"
    if status in NO_RIGHT or name in CREDENTIALS_BY_NAME:
        return (
            f"storage {where}: expected access, found that it is refused ({answer}). {CREDENTIALS}"
        )
    if "without LOCATION" in text:
        return f"storage {where}: expected the bucket's region, found another. Set AWS_REGION to it"
    if "builder error" in text:
        return (
            f"storage {where}: expected an endpoint with https://, found another. "
            "Correct the endpoint, or allow http:// with AWS_ALLOW_HTTP=true"
        )
    if status == 501:
        return (
            f"storage {where}: expected that it knows conditional writes, found that it does not "
            f"({answer}). Use a newer version of the service, or another `storage`"
        )
    if "Account must be specified" in text:
        return f"storage {where}: expected an account, found none. Set AZURE_STORAGE_ACCOUNT_NAME"
    detail = f"the answer {answer}" if answer else "that the client cannot do it"
    return f"storage {where}: expected to be served, found {detail}. Check the address and the key"
