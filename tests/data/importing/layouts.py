"""Cohorts in other layouts than ours, and what `smile-fast import` makes of them."""

import nibabel as nib
import numpy as np

from smile_fast.cli.main import main
from smile_fast.data.annotations import read_annotations
from smile_fast.data.dataset import RawDataset
from tests.cohorts import BOXES, ORGANS, SHAPE, other_image, write_nifti


def mask(organ, value=1):
    data = np.zeros(SHAPE, np.uint8)
    data[BOXES[organ]] = value
    return data


def write_case(source, case, organs=ORGANS, image="ct.nii.gz", folder="segmentations"):
    path = source / case
    (path / folder).mkdir(parents=True)
    write_nifti(path / image, (other_image() + len(case) + sum(map(ord, case))).astype(np.int16))
    for organ in organs:
        write_nifti(path / folder / f"{organ}.nii.gz", mask(organ))


def run(*arguments):
    return main(["import", *map(str, arguments), "--workers", "1"])


def opened(out):
    dataset = RawDataset.open(out)
    return dataset, read_annotations(out / "annotations.csv", dataset.names(), dataset.organs)


def labels_of(out, case):
    return np.asarray(nib.load(out / "labelsTr" / f"{case}.nii.gz").dataobj)
