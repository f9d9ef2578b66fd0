"""`smile-predict` on a folder, and what lies in one."""

from smile_runtime.predict.cli import main


def run(model, scans, out, *options):
    return main([str(model), str(scans), "-o", str(out), *options])


def content_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
