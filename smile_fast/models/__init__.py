"""DeepLab v3 with K independent sigmoid heads (or a K+1 softmax for the baseline)."""

from typing import TYPE_CHECKING, Any

from smile_fast.models.config import ModelConfig

if TYPE_CHECKING:
    from smile_fast.models.segmenter import Segmenter

__all__ = ["ModelConfig", "Segmenter"]


def __getattr__(name: str) -> Any:
    """Import the network when it is asked for: its settings are read without torch."""
    if name != "Segmenter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from smile_fast.models.segmenter import Segmenter

    return Segmenter
