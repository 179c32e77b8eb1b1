"""Optional libraries, which an installation may lack: one of the extras brings them."""

import importlib.util
from collections.abc import Iterable

_NAMES = {"faiss": "FAISS", "pandas": "pandas", "torch": "PyTorch"}


def list_missing(modules: Iterable[str]) -> list[str]:
    """Those of the modules that are not installed."""
    return [module for module in modules if importlib.util.find_spec(module) is None]


def require(*modules: str, extra: str, what: str = "") -> None:
    """Refuses work before it starts where a library is missing.

    Args:
      *modules: What it imports.
      extra: The extras that bring them.
      what: Who needs them, the beginning of the message.

    Raises:
      ValueError: With the command that installs it.
    """
    for module in list_missing(modules):
        name = _NAMES.get(module, f"the library {module}")
        raise ValueError(f"{what}expected {name}, found none; {install(extra)}")


def install(extra: str) -> str:
    """The command that installs extras, in a checkout."""
    return f"pip install '.[{extra}]'"
