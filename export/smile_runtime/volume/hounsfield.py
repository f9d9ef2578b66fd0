"""Whether a scan's values can be Hounsfield units, judged by the lowest and the highest of them."""

from smile_runtime.errors import InputError
from smile_runtime.io.nifti import Volume
from smile_runtime.volume.padding import MEASURED_AIR_HU, Padding

_OTHER_SCALE = (-5, 255)  # holds label maps, grey values of 8 bits and HU / 1000; a CT scan has air or fat below


def range_hu(volume: Volume, padding: Padding | None = None) -> tuple[int, int]:
    """The lowest and the highest value of a scan; of what was measured in it.

    Args:
        volume: The scan.
        padding: What was found in it and set to air.

    Raises:
        InputError: The scan shows nothing, or its values cannot be Hounsfield units.
    """
    low, high = int(volume.data.min()) if padding is None else padding.lowest_hu, int(volume.data.max())
    if low == high:
        raise InputError(f"{volume.path}: shows nothing, all its voxels are {low} HU; give a CT scan")
    if _OTHER_SCALE[0] <= low and high <= _OTHER_SCALE[1]:
        raise InputError(
            f"{volume.path}: not in Hounsfield units, its rounded values lie between {low} and {high}, as those of a "
            "label map or a rescaled picture do; give a scan with air at -1000 and fat at -100"
        )
    return low, high


def range_warning(range_hu: tuple[int, int]) -> str | None:
    """What has to be known of a scan that has no air: that it may lie on another scale, say HU + 1024."""
    if range_hu[0] < MEASURED_AIR_HU:
        return None
    return (
        f"no voxel lies below {MEASURED_AIR_HU} HU, as air and lungs do; make sure that the scan is in Hounsfield units"
    )
