"""The version of the package, which reports and cards name."""

__version__ = "0.1.0"
