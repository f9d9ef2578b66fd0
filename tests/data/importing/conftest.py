import pytest

from tests.data.importing.layouts import write_case


@pytest.fixture
def source(tmp_path):
    """TotalSegmentator's layout; the pancreas of the second case was not drawn."""
    path = tmp_path / "source"
    write_case(path, "s01")
    write_case(path, "s02 ü", ("liver", "spleen"))
    return path
