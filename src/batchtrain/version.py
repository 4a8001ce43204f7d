"""The version of the package, apart from everything else so that reading it costs nothing."""

__version__ = "0.1.0"
