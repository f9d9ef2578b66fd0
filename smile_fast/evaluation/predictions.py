"""Where the label maps that are scored come from: a run's network, or a folder of NIfTI files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from smile_fast.data.arrays import pack_array, unpack_array
from smile_fast.data.label_folder import FolderLabelMap, LabelMap, label_files
from smile_fast.pipeline import in_order, worker_thread

if TYPE_CHECKING:
    import torch

    from smile_fast.training.run import Run


@contextmanager
def network_predictions(run: "Run", cases: Sequence[str], device: "torch.device | str") -> Iterator[Iterator[LabelMap]]:
    """Label maps of a run's network, case after case.

    While the device predicts a case, the next one is read, and the one before it is compressed, so that it takes little
    memory while it waits and little time to another process.

    Yields:
        The label maps, made as they are asked for.
    """
    from smile_fast.training import inference

    store, model = run.store, run.load_model().to(device)
    body = run.config.body  # what lies outside of the box is predicted as nothing: labels there count as missed
    with worker_thread("read") as reader, worker_thread("pack") as packer:
        images = in_order(store.read_image, cases, reader, ahead=1)
        queued = (
            inference.queue_labels(model, image, box=store.body_box(case, body), spacing=store.cases[case].spacing)
            for case, image in zip(cases, images, strict=True)
        )
        yield in_order(_packed, queued, packer, ahead=1)


def _packed(label_map: LabelMap) -> LabelMap:
    return partial(unpack_array, pack_array(label_map()))


def folder_predictions(run: "Run", cases: Sequence[str], folder: Path) -> Iterator[LabelMap]:
    """Label maps of a folder of NIfTI files named CASE.nii.gz; none is read before it is called for.

    Raises:
        InputError: see `label_files`.
    """
    known = run.store.cases
    return (FolderLabelMap(path, known[case], len(run.organs)) for case, path in label_files(cases, folder).items())
