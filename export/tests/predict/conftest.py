"""Fixtures of the tests of scans and folders."""

import pytest
from nifti_files import random_hu, write


@pytest.fixture
def scans(tmp_path):
    """Five scans of different shapes."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number, shape in enumerate([(30, 20, 5), (8, 9, 3), (40, 40, 6), (5, 5, 1), (16, 12, 4)]):
        write(folder / f"case {number}.nii.gz", random_hu(shape, number))
    return folder
