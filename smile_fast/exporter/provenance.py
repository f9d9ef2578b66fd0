"""How a run was made, for the model card."""

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import smile_fast
from smile_fast.data.store import INDEX, Store
from smile_fast.training.run import Run
from smile_runtime.io.files import sha256

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")


def provenance(run: Run, store: Store) -> dict[str, Any]:
    """Tell how a run was made: method, settings, fingerprints and versions, plain JSON."""
    record = {
        "method": run.config.method,
        "settings": run.config.to_json(),
        "cases": {split: len(run.cases(split)) for split in ("train", "validation", "test")},
        "store_sha256": sha256(store.path / INDEX),
        "config_sha256": sha256(run.path / "config.json"),
        "annotations_sha256": sha256(run.path / "annotations.csv"),
        "weights_sha256": sha256(run.model_path),
        "commit": _commit(),
        "versions": {
            "smile-fast": smile_fast.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
    }
    plain: dict[str, Any] = json.loads(json.dumps(record))  # lists for tuples, as they will be read back
    return plain


def _commit() -> str | None:
    """Return the commit that the package runs from, None for an installed one."""
    checkout = Path(smile_fast.__file__).resolve().parents[1]
    if not (checkout / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
