"""One step of the training, from a batch on the device to changed weights, without a look at the device."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from smile_fast.models import Segmenter
from smile_fast.training.augment import Augmentation
from smile_fast.training.batch_norm import set_batch_norm
from smile_fast.training.config import TrainConfig
from smile_fast.training.gradients import GradientSum
from smile_fast.training.objectives import Loss, StepLoss
from smile_fast.training.optimization import build_optimizer, optimizer_tensors, set_learning_rate, update_average
from smile_fast.training.ranks import ALONE, Ranks
from smile_fast.training.schedule import average_weight, dropout_seed
from smile_runtime.errors import InputError, first_line


class Learner:
    """A network and all that changes it.

    Args:
        model: the network with its start weights.
        config: settings of the run.
        device: where to train.
        compiled: let torch compile the network.
        captured: steps may be captured: the numbers that change from step to step are kept in tensors on the device.
            On CUDA they always are, so that a training with and one without graphs go on from each other's
            checkpoints. On the CPU the optimizer's arithmetic is another one then.
        ranks: who train it together, each with a share of the images of a batch. Their weights stay the same: all of
            them make the same step, by the gradient of the whole batch.
    """

    def __init__(
        self,
        model: Segmenter,
        config: TrainConfig,
        device: torch.device,
        *,
        compiled: bool = False,
        captured: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.device, self.ranks = config, device, ranks
        on_device = captured or device.type == "cuda"
        self.model = model.to(device)
        # Convolutions are fastest in channels_last on CUDA, and no slower in it on the CPU; but there the backward pass
        # of those with 8 channels writes beyond its memory (torch 2.13, from some 208 x 256 pixels on).
        crashes = device.type == "cpu" and config.model.width == 8
        self.layout = torch.contiguous_format if crashes else torch.channels_last
        self.model.to(memory_format=self.layout)  # type: ignore[call-overload]  # a gap in the stubs
        self.average = copy.deepcopy(self.model) if config.ema else None
        set_batch_norm(self.model, config.batch_norm, ranks)
        self._network: Callable[[Tensor], Tensor] = torch.compile(self.model, dynamic=False) if compiled else self.model
        self._errors = _compiler_errors if compiled else nullcontext
        self.optimizer = build_optimizer(self.model, config, on_device=on_device)
        self._gradient = GradientSum(self.model.parameters(), ranks) if ranks.world > 1 else None
        self._average_weight: float | Tensor = torch.zeros((), device=device) if on_device else 0.0
        self._augment, self._images, self._seed = Augmentation.of(config), config.batch_size, 0
        self._generator = torch.Generator()
        # bfloat16 matrix products are slower than float32 on most CPUs, so "auto" means CUDA.
        self._amp = config.amp == "bfloat16" or (config.amp == "auto" and device.type == "cuda")

    @property
    def final_model(self) -> Segmenter:
        """The network as it would be delivered now: that of the averaged weights if there are any."""
        return self.model if self.average is None else self.average

    def prepare(self, seed: int, lr: float, step: int, images: int, size: tuple[int, int]) -> Tensor:
        """Set what `compute` reads beside a batch, for one step.

        The seed makes augmentation and dropout functions of the position: nothing random has to be stored.

        Args:
            seed: of the step.
            lr: its learning rate.
            step: t of the average, counted from 0.
            images: of the whole batch.
            size: P and Q, pixels of the patches.

        Returns:
            The changes of this rank's images, see `Augmentation.draw`, on the host; pinned if they go to CUDA.
        """
        torch.manual_seed(seed)
        self._seed, self._images = seed, images
        set_learning_rate(self.optimizer, lr)
        if self.average is not None:
            weight = average_weight(self.config.ema, step)
            if isinstance(self._average_weight, Tensor):
                self._average_weight.fill_(weight)
            else:
                self._average_weight = weight
        whole, share = self._augment.draw(images, size, self._generator.manual_seed(seed)), self.ranks.share
        changes = whole[share.number - 1 :: share.count].contiguous()
        return changes.pin_memory() if self.device.type == "cuda" else changes

    def compute(
        self,
        loss_of: Loss,
        hu: Tensor,  # [N, C, P, Q] int16
        labels: Tensor,  # [N, P, Q] uint8
        cases: Tensor,  # [N] int64
        changes: Tensor,  # [N, 9] float32
    ) -> StepLoss:
        """Augmentation, network, loss, gradient, optimizer and average; all inputs are on the device.

        Raises:
            InputError: in the first step, if the network cannot be compiled.
        """
        # A generator of one's own cannot be captured, and the seed of the device's own is that of the step, too.
        generator = self._generator if self.device.type == "cpu" else None
        with _tuned_convolutions(), self._errors():
            images, seen = self._augment(hu, labels, changes, generator, self._images, self.ranks.share)
            if self.ranks.world > 1:  # what is drawn from here on are features to drop
                torch.manual_seed(dropout_seed(self._seed, self.ranks.rank))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._amp):
                logits = self._network(images.contiguous(memory_format=self.layout))  # [N, M, h, w]
            loss = loss_of(logits, seen, cases)
            self.optimizer.zero_grad(set_to_none=True)
            loss.loss.backward()  # type: ignore[no-untyped-call]
        if self._gradient is not None:
            self._gradient.finish()
        if self.config.clip_norm:
            clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            update_average(self.average, self.model, self._average_weight)
        return StepLoss(self.ranks.sum(loss.loss.detach()), loss.sums, loss.counts)

    def tensors(self) -> Iterator[Tensor]:
        """All that a step changes: weights, averaged weights, the optimizer's state."""
        yield from self.model.state_dict().values()
        if self.average is not None:
            yield from self.average.state_dict().values()
        yield from optimizer_tensors(self.optimizer).values()


@contextmanager
def _compiler_errors() -> Iterator[None]:
    """Say in one sentence what torch.compile says where it first works: in a forward pass, and in its backward pass."""
    from torch._dynamo.exc import TorchDynamoException  # not at the top: it takes a second, and few need it

    try:
        yield
    except TorchDynamoException as error:
        raise InputError(
            f"--compile: torch cannot compile the network here ({first_line(error)}); leave the option out"
        ) from None


@contextmanager
def _tuned_convolutions() -> Iterator[None]:
    """Let cuDNN try its algorithms once a shape: in training there are few, elsewhere there may be many."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
