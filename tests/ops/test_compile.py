import pytest
import torch
from torch import Tensor

from smile_fast.ops import masked_bce, masked_bce_upsampled, select_top_fraction
from tests.ops.problems import problem


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # torch's own, from loading inductor
def test_a_training_step_and_a_selection_are_one_inductor_graph() -> None:
    given = problem(2, 3, (8, 9), torch.float32, low=(4, 5))
    high = problem(2, 3, (8, 9), torch.float32).logits

    def step(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        loss = masked_bce(high, given.labels, given.table) + masked_bce_upsampled(low, given.labels, given.table)
        segments = torch.tensor([0, high[0, 0].numel()])
        return loss, select_top_fraction(high[0, 0].flatten(), given.known[0, 0].flatten(), 0.5, segments)

    compiled = torch.compile(step, fullgraph=True)
    results = []
    for function in (step, compiled):
        leaves = given.logits.clone().requires_grad_(), high.clone().requires_grad_()
        loss, selection = function(*leaves)
        results.append((loss.detach(), selection, *torch.autograd.grad(loss, leaves)))
    torch.testing.assert_close(results[1], results[0])
