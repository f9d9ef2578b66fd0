"""The losses of `smile_fast.ops` as modules, for anybody's training loop.

>>> criterion = MaskedBCELoss()  # doctest: +SKIP
>>> criterion(network(image), labels, build_tables(states, Policy.SMILE)).backward()  # doctest: +SKIP
"""

from torch import Tensor, nn

from smile_fast.ops import masked_bce, masked_bce_upsampled
from smile_fast.ops.checks import check_reduction


class MaskedBCELoss(nn.Module):
    """Binary cross entropy of K sigmoid heads, each over the voxels on which its organ is known: `ops.masked_bce`.

    Args:
        reduction: "mean" over the known (voxel, organ) pairs, exactly 0 when there are none; "sum"; or "none" for one
            sum an (image, organ).
        overwrite_logits: write the gradient over the logits, which may not be read afterwards.

    Raises:
        ValueError: unknown reduction.
    """

    def __init__(self, reduction: str = "mean", *, overwrite_logits: bool = False) -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction, self.overwrite_logits = reduction, overwrite_logits

    def forward(
        self,
        logits: Tensor,  # [B, K, *S]
        labels: Tensor,  # [B, *S] uint8
        table: Tensor,  # [B, 256, 2, ceil(K / 32)] int32
    ) -> Tensor:
        """Return the loss, [] or [B, K]; arguments and errors as those of `smile_fast.ops.masked_bce`."""
        return masked_bce(logits, labels, table, reduction=self.reduction, overwrite_logits=self.overwrite_logits)

    def extra_repr(self) -> str:
        """Say what the module was made with."""
        return f"reduction={self.reduction!r}, overwrite_logits={self.overwrite_logits}"


class MaskedBCEUpsampledLoss(nn.Module):
    """`MaskedBCELoss` of logits that are interpolated to the labels' size on the way: `ops.masked_bce_upsampled`.

    Args:
        reduction: as that of `MaskedBCELoss`.

    Raises:
        ValueError: unknown reduction.
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction

    def forward(
        self,
        logits: Tensor,  # [B, K, h, w] or [B, K, d, h, w]
        labels: Tensor,  # [B, H, W] or [B, D, H, W] uint8
        table: Tensor,  # [B, 256, 2, ceil(K / 32)] int32
    ) -> Tensor:
        """Return the loss, [] or [B, K]; arguments and errors as those of `smile_fast.ops.masked_bce_upsampled`."""
        return masked_bce_upsampled(logits, labels, table, reduction=self.reduction)

    def extra_repr(self) -> str:
        """Say what the module was made with."""
        return f"reduction={self.reduction!r}"
