"""flowcli: continuous normalizing flows and flow matching, from a config to numbers worth trusting."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from flowcli.build import load


def __getattr__(name: str) -> Any:
    """Import `flowcli.load`, and with it torch, when it is first asked for."""
    if name == "load":
        from flowcli.build import load

        return load
    raise AttributeError(f"module 'flowcli' has no attribute {name!r}")
