"""Imported by every Python process at its start if this folder is on its path: worker processes are disturbed, too."""

from tests.faults.inject import install_from_environment

install_from_environment()
