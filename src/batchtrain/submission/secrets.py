"""What must not travel: files and variables that hold keys, by their names or their values."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from pathlib import Path

from batchtrain.errors import UnsafeInputError

__all__ = ["LEFT_OUT", "has_password", "is_secret_variable", "refuse_secrets"]

FOLDERS = frozenset(
    {
        *(".git", ".hg", ".svn", ".bzr"),
        *(".ssh", ".gnupg", ".aws", ".azure", ".gcloud", ".kube", ".docker", ".ray"),
    }
)
FILES = (
    *(".env", ".env.*", "*.env", ".netrc", "_netrc", ".pgpass", ".npmrc", ".pypirc"),
    *(".git-credentials", ".htpasswd", "credentials", "credentials.*", "auth_token", "kubeconfig"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.pem", "*.key", "*.p12", "*.pfx"),
    *("*.jks", "*.keystore", "*.kdbx", "*.ppk", "*.gpg", "*.asc"),
)

LEFT_OUT = frozenset({"__pycache__", *FOLDERS})
"""Folders that are passed over where a whole folder travels."""

SECRET_WORD = re.compile(r"KEYS?|PAT|AUTH|PASSWD|PRIVATE|SIGNATURE|DSN|.*(SECRET|TOKEN|PASSWORD)S?")
SECRET_PART = re.compile(r"APIKEY|CREDENTIAL")
SECRET_PHRASE = re.compile(r"CONNECTION_?STRING")
NO_SECRET_ENDS = frozenset({"ID", "FILE", "PATH", "DIR", "URI", "URL", "MODE"})
"""The last words of names such as AWS_ACCESS_KEY_ID and RAY_AUTH_TOKEN_PATH."""

PASSWORD_IN_ADDRESS = re.compile(r"://[^/@]*:[^/@]*@")


def refuse_secrets(paths: Iterable[Path]) -> None:
    """Refuse files that hold keys, or lie among the files of a version control.

    A link counts as what it leads to.

    Raises:
        UnsafeInputError: Naming the first few.
    """
    found = [str(path) for path in paths if _is_secret(path) or _is_secret(path.resolve())]
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise UnsafeInputError(
            "expected files without secrets, found by their names: "
            f"{', '.join(found[:3])}{more}. What travels can be read by everybody who sees the "
            "cluster: name only what the run needs, and give credentials to the nodes themselves"
        )


def is_secret_variable(name: str) -> bool:
    """Whether a variable holds a secret, by its name.

    Example:
        >>> [is_secret_variable(name) for name in ("AWS_SECRET_ACCESS_KEY", "PGPASSWORD")]
        [True, True]
        >>> [is_secret_variable(name) for name in ("AWS_ACCESS_KEY_ID", "TOKENIZERS_PARALLELISM")]
        [False, False]
    """
    words = name.upper().split("_")
    if words[-1] in NO_SECRET_ENDS:
        return False
    if SECRET_PHRASE.search(name.upper()):
        return True
    return any(SECRET_WORD.fullmatch(word) or SECRET_PART.search(word) for word in words)


def has_password(value: str) -> bool:
    """Whether a value is an address with a password in it, whatever its variable is called.

    Example:
        >>> [has_password(text) for text in ("postgres://me:pw@host/db", "http://host:5000/me@x")]
        [True, False]
    """
    return PASSWORD_IN_ADDRESS.search(value) is not None


def _is_secret(path: Path) -> bool:
    name = path.name.lower()
    if any(part in FOLDERS for part in path.parts):
        return True
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in FILES)
