"""One safetensors file per checkpoint: tensors, and the loop's state and a digest as JSON in the file's header."""

import hashlib
import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path, flush, parse_json

_FORMAT = "smile-fast-checkpoint-2"
_OLD_FORMAT = "smile-fast-checkpoint-1"  # without a digest
_KEY = "smile-fast"  # of the header's metadata: one key, for they have no order
_ALIGNMENT = 8  # bytes: no element of a tensor is larger
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass
class Checkpoint:
    """What is needed to go on as if nothing had happened.

    Attributes:
        tensors: by group ("model", "optimizer", "average"), then by name.
        state: plain JSON: round, step, seconds, ...
    """

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path, *, before: Path | None = None) -> None:
        """Write the file atomically; the same tensors and state give the same bytes.

        Args:
            path: the file.
            before: where the file that is at `path` now is kept; at every moment one of the two is whole.

        Raises:
            InputError: if the folder cannot be written or the disk is full.
        """
        flat = {
            f"{group}/{name}": tensor.detach().cpu().contiguous()
            for group, tensors in self.tensors.items()
            for name, tensor in tensors.items()
        }
        # safetensors wants the largest elements first, so that every tensor is aligned.
        ordered = dict(sorted(flat.items(), key=lambda entry: (-entry[1].element_size(), entry[0])))
        state = json.dumps(self.state)
        with atomic_path(path) as temporary:
            with open(temporary, "wb") as file:
                file.write(_header(ordered, state))
                for tensor in ordered.values():
                    file.write(_bytes(tensor))
            if before is not None:
                flush(temporary)
                _keep(path, before)

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether a file is one that `save` wrote, in this version or an older one; a damaged or foreign one is not."""
        try:
            return _metadata(path) is not None
        except (OSError, SafetensorError, ValueError):
            return False

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read a file that `save` wrote, and compare it with its digest.

        Raises:
            InputError: if it is missing, damaged, or something else.
        """
        tensors: dict[str, dict[str, Tensor]] = {}
        try:
            header = _metadata(path)
            if header is None:
                raise InputError(f"{path}: not a smile-fast checkpoint; give a file that a training run wrote")
            if header.get("format") != _FORMAT:
                raise InputError(
                    f"{path}: written by an older smile-fast, without a checksum; train again, or use the smile-fast "
                    "that made it"
                )
            with safe_open(path, framework="pt") as file:
                flat = {key: file.get_tensor(key) for key in file.keys()}
            if _digest(flat, header["state"]) != header["sha256"]:
                raise ValueError("it has not the checksum that it was written with")
            for key, tensor in flat.items():
                group, _, name = key.partition("/")
                tensors.setdefault(group, {})[name] = tensor
            return cls(tensors, parse_json(header["state"]))
        except FileNotFoundError:
            raise InputError(f"{path}: does not exist; train first, or name another run") from None
        except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path}: damaged, it cannot be read as a checkpoint ({error}); restore it from a copy, or train again"
            ) from None

    @classmethod
    def load_newest(cls, path: Path, before: Path) -> tuple["Checkpoint", Path]:
        """Read a checkpoint, or the one before it where it is damaged or not there.

        Returns:
            The checkpoint, and its file.

        Raises:
            InputError: none of the two can be used; it tells of the newest.
        """
        try:
            return cls.load(path), path
        except InputError:
            if not before.exists():
                raise
        try:
            return cls.load(before), before
        except InputError:
            raise InputError(
                f"{path}: cannot be read as a checkpoint, nor can {before.name}, the one before it; restore one of "
                "them from a copy, or train again"
            ) from None


def _keep(path: Path, before: Path) -> None:
    """Give a file a second name, if there is one; the name is that of the older file or of this one at every moment."""
    if not path.exists():
        return
    linked = before.with_name(f".tmp-{secrets.token_hex(8)}{before.suffix}")
    try:
        os.link(path, linked)
        os.replace(linked, before)
    except OSError:  # a file system without links: for a moment there is only the one before
        os.replace(path, before)
    finally:
        with suppress(OSError):
            linked.unlink()


def _header(tensors: dict[str, Tensor], state: str) -> bytes:
    """Length and JSON, as safetensors wants them before the tensors' bytes, which follow without gaps."""
    about = {"format": _FORMAT, "state": state, "sha256": _digest(tensors, state)}
    entries: dict[str, Any] = {"__metadata__": {_KEY: json.dumps(about)}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _metadata(path: Path) -> dict[str, Any] | None:
    """What `save` says of a safetensors file; None where another program wrote it."""
    with safe_open(path, framework="pt") as file:
        found = file.metadata() or {}
    if found.get("format") == _OLD_FORMAT:
        return dict(found)
    return parse_json(found[_KEY]) if _KEY in found else None


def _digest(tensors: dict[str, Tensor], state: str) -> str:
    """SHA-256 of everything that `load` gives: names, types, shapes and values, whatever their order in the file."""
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
