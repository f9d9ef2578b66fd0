"""One safetensors file per checkpoint: tensors, and the loop's state as JSON in the file's header."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path, parse_json

_FORMAT = "smile-fast-checkpoint-1"


@dataclass
class Checkpoint:
    """What is needed to go on as if nothing had happened.

    Attributes:
        tensors: by group ("model", "optimizer", "average"), then by name.
        state: plain JSON: round, step, seconds, ...
    """

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file atomically.

        Raises:
            InputError: if the folder cannot be written or the disk is full.
        """
        # safetensors refuses tensors that share memory, which parameters of a network never do here.
        flat = {f"{group}/{name}": t.contiguous() for group, ts in self.tensors.items() for name, t in ts.items()}
        header = {"format": _FORMAT, "state": json.dumps(self.state)}
        with atomic_path(path) as temporary:
            temporary.touch()  # as any other new file: safetensors writes one that only its owner may read
            mode = temporary.stat().st_mode
            try:
                save_file(flat, temporary, metadata=header)
                temporary.chmod(mode)
            except SafetensorError as error:  # not an OSError: a full disk ends here
                raise InputError(f"{path}: cannot be written ({error}); free some space") from None

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether a file is one that `save` wrote; one that is missing, damaged or foreign is none."""
        try:
            with safe_open(path, framework="pt") as file:
                return bool((file.metadata() or {}).get("format") == _FORMAT)
        except (OSError, SafetensorError):
            return False

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read a file that `save` wrote.

        Raises:
            InputError: if it is missing, damaged, or something else.
        """
        tensors: dict[str, dict[str, Tensor]] = {}
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != _FORMAT:
                    raise InputError(f"{path}: not a smile-fast checkpoint; give a file that a training run wrote")
                for key in file.keys():
                    group, _, name = key.partition("/")
                    tensors.setdefault(group, {})[name] = file.get_tensor(key)
            return cls(tensors, parse_json(header["state"]))
        except FileNotFoundError:
            raise InputError(f"{path}: does not exist; train first, or name another run") from None
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path}: damaged, it cannot be read as a checkpoint ({error}); restore it from a copy, or train again"
            ) from None
