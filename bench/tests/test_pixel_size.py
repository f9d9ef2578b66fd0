import nibabel as nib
import numpy as np
import pytest

from bench.pixel_size import FINE, RUNS, by_scale, resample, table

AFFINE = np.array([[-1.0, 0, 0, 160], [0, 0, 3.0, -7], [0, 1.0, 0, -160], [0, 0, 0, 1]])


@pytest.mark.parametrize("size", [320, 213, 80])
def test_a_resampled_volume_lies_where_it_lay(tmp_path, size):
    y, x = np.meshgrid(np.arange(FINE), np.arange(FINE), indexing="ij")
    disc = (np.hypot(y - 100, x - 200) < 60)[..., None] * np.ones(9)
    for name, values in (("image", disc * 200 - 100), ("labels", disc * 2)):
        image = nib.Nifti1Image(values.astype(np.int16 if name == "image" else np.uint8), AFFINE)
        nib.save(image, tmp_path / f"{name}.nii.gz")
        resample(tmp_path / f"{name}.nii.gz", tmp_path / "out.nii.gz", size, labels=name == "labels")
        found = nib.load(tmp_path / "out.nii.gz")
        assert found.shape == (size, size, 9)
        data = np.asarray(found.dataobj)
        inside = np.argwhere(data > (0 if name == "image" else 1)).mean(axis=0)
        place = nib.affines.apply_affine(found.affine, inside)
        wanted = nib.affines.apply_affine(AFFINE, (100, 200, 4))
        assert np.abs(place - wanted).max() < FINE / size / 4  # a quarter of a pixel
        np.testing.assert_array_equal(found.get_qform(), found.get_sform())
        if name == "labels":
            assert set(np.unique(data)) == {0, 2}


def test_the_table_shows_every_run_and_size():
    pairs = [
        {"case": f"{case}_x{scale}", "organ": organ, "dice": dice}
        for case, dice in (("a", 0.5), ("b", 0.75))
        for scale in (200, 50, 100)
        for organ in ("liver", "pancreas")
    ]
    dice = by_scale({"pairs": pairs})
    assert list(dice) == ["0.5", "1", "2"]
    assert dice["0.5"] == {"liver": 0.625, "pancreas": 0.625}
    text = table({"dice": dict.fromkeys(RUNS, dice), "cpu": "A CPU", "commit": "abc"})
    assert text.count("| 0.625, 0.625 | 0.625, 0.625 | 0.625, 0.625 |") == len(RUNS)
    assert text.startswith("| Dice of liver, pancreas; pixels of the scan / those of the training | 0.5 | 1 | 2 |\n")
