"""DeepLab v3 with K independent sigmoid heads (or a K+1 softmax for the baseline)."""

from smile_fast.models.segmenter import ModelConfig, Segmenter

__all__ = ["ModelConfig", "Segmenter"]
