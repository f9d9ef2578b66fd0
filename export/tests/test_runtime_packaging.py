"""What an installation costs: bytes on the disk, and seconds before it answers."""

import importlib.metadata
import re

import pytest
from cpu_time import seconds_of_python, shortest

NAME = re.compile(r"[A-Za-z0-9._-]+")


def needed(distribution="smile-fast-runtime"):
    """Names of all distributions that one needs, itself included, without extras and other platforms."""
    found, todo = set(), [distribution]
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or Python
        found.add(name)
        todo += [NAME.match(text)[0] for text in requirements if "extra ==" not in text]
    return found


def test_an_installation_takes_at_most_150_mb():
    names = needed()
    assert {"numpy", "nibabel", "onnxruntime", "smile-fast-runtime"} <= names
    assert not names & {"torch", "onnx", "scipy", "smile-fast"}
    sizes = {
        name: sum(
            path.stat().st_size
            for file in importlib.metadata.files(name) or []
            if (path := file.locate()).is_file() and path.suffix != ".pyc"
        )
        for name in names
    }
    assert sizes["numpy"] > 10e6  # the files were found
    assert sum(sizes.values()) <= 150e6, sizes


@pytest.mark.parametrize("statement", ["import smile_runtime", "import smile_runtime.predict.cli"])
def test_the_import_takes_at_most_half_a_second(statement):
    assert shortest(lambda: seconds_of_python("-c", statement), 0.5) <= 0.5  # s, Python's own start included
