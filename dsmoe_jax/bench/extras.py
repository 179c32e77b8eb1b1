"""Libraries that measurements compare with and that an installation may lack."""

import importlib.util

_NAMES = {"faiss": "FAISS", "pandas": "pandas", "torch": "PyTorch"}


def require(*modules: str) -> None:
    """Refuses a measurement before it starts where a library is missing.

    Raises:
      ValueError: With the command that installs it.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"expected {_NAMES[module]}, found none; pip install '.[cpu,bench]'")
