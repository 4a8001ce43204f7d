"""Shared storage behind one small protocol."""

from batchtrain.storage.base import Storage
from batchtrain.storage.folder import FolderStorage

__all__ = ["FolderStorage", "Storage"]
