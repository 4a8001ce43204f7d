"""What must not travel: files and variables that hold keys, by their names."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from pathlib import Path

from batchtrain.errors import UnsafeInputError

__all__ = ["LEFT_OUT", "is_secret_variable", "refuse_secrets"]

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

SECRET_VARIABLE = re.compile(
    r"(SECRET|TOKEN|PASSW|CREDENTIAL|PRIVATE|SIGNATURE|(^|_)(API|ACCESS)?_?KEYS?$|(^|_)AUTH$|_PAT$)"
)


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
    """Whether a variable is a secret, by its name.

    Example:
        >>> is_secret_variable("AWS_SECRET_ACCESS_KEY"), is_secret_variable("AWS_REGION")
        (True, False)
    """
    return SECRET_VARIABLE.search(name.upper()) is not None


def _is_secret(path: Path) -> bool:
    name = path.name.lower()
    if any(part in FOLDERS for part in path.parts):
        return True
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in FILES)
