"""The token by which a Ray cluster knows its users, found where Ray itself looks for it."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from batchtrain.errors import ClusterError

__all__ = ["Token", "find_token"]

MODE, VALUE, PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
MOST_BYTES = 2**16


@dataclass(frozen=True)
class Token:
    """A token; its value is never printed.

    Attributes:
        value: The secret.
        source: Where it was found, as messages name it.
        others_read: Whether other users of this machine may read its file.
    """

    value: str = field(repr=False)
    source: str
    others_read: bool = False


def find_token(environ: Mapping[str, str] = os.environ, home: Path | None = None) -> Token | None:
    """The token of `RAY_AUTH_TOKEN`, of the file of `RAY_AUTH_TOKEN_PATH`, or of the user's own.

    In that order, as Ray does (2.60); None where there is none, or `RAY_AUTH_MODE` is another than
    `token`.

    Args:
        environ: The environment.
        home: The user's folder.

    Raises:
        ClusterError: Without the secret, if what should be a token is none.
    """
    if environ.get(MODE, "token").lower() != "token":
        return None
    if environ.get(VALUE, "").strip():
        return _checked(Token(environ[VALUE].strip(), VALUE))
    asked = environ.get(PATH)
    path = Path(asked) if asked else (home or Path.home()) / ".ray" / "auth_token"
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            data = stream.read(MOST_BYTES)
    except FileNotFoundError:
        if not asked:
            return None
        raise ClusterError(
            f"{PATH}: expected the file of a token, found no file {path}. Correct the path"
        ) from None
    except OSError as error:
        reason = (error.strerror or "it cannot be read").lower()
        raise ClusterError(
            f"expected the file of a token at {path}, found: {reason}. Look at its owner and mode"
        ) from None
    text = data.decode("ascii", errors="replace").strip()
    if not text and not asked:
        return None
    return _checked(Token(text, str(path), bool(mode & (stat.S_IRWXG | stat.S_IRWXO))))


def _checked(token: Token) -> Token:
    """A token that can be sent: what else it is would be repeated by the library that sends it."""
    text = token.value
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ClusterError(
            f"expected a token in {token.source}, found something else: it is empty, or holds "
            "spaces or other characters that no token has. Write it anew with `ray get-auth-token`"
        )
    return token
