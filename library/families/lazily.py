"""Modules that are imported when something of them is first asked for.

The files of the families import so what imports torch: that takes seconds, and nobody should wait for it who only asks
what a file is.
"""

from importlib import import_module
from typing import Any


class _Lazy:
    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)


def lazily(*names: str) -> list[Any]:
    """Stand-ins for modules, by their dotted names."""
    return [_Lazy(name) for name in names]
