"""Shared storage behind one small protocol."""

from batchtrain.storage.base import Storage
from batchtrain.storage.folder import FolderStorage
from batchtrain.storage.opening import (
    is_address,
    local_folder,
    locate,
    open_storage,
    retried_calls,
)
from batchtrain.storage.probe import ProbedStorage, probe_storage
from batchtrain.storage.retrying import RetryingStorage

__all__ = [
    "FolderStorage",
    "ProbedStorage",
    "RetryingStorage",
    "Storage",
    "is_address",
    "local_folder",
    "locate",
    "open_storage",
    "probe_storage",
    "retried_calls",
]
