import errno
import os
import resource
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from cpu_time import seconds_of_python, shortest
from nifti_files import random_hu, write
from tiny_models import threshold_card, threshold_labels, write_threshold_model

from smile_runtime import __version__
from smile_runtime.predict.cli import main
from smile_runtime.predict.predictor import Predictor


@pytest.fixture
def case(tmp_path, threshold_model):
    """Arguments of a run that works, and the folder it writes to."""
    (tmp_path / "out").mkdir()
    scan = write(tmp_path / "scan.nii.gz", random_hu((60, 50, 4)))
    return [str(threshold_model), str(scan), "-o", str(tmp_path / "out" / "labels.nii.gz")], tmp_path / "out"


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir())


def command(*args, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "smile_runtime", *args],
        capture_output=True,
        text=True,
        check=False,
        **kwargs,
    )


def test_a_run(case, capsys):
    args, out = case
    assert main([*args, "--threads", "1", "--batch", "2", "--provider", "cpu"]) == 0
    hu = random_hu((60, 50, 4))
    assert np.array_equal(np.asarray(nib.load(out / "labels.nii.gz").dataobj), threshold_labels(hu))
    assert left_behind(out) == ["labels.nii.gz"]
    printed = capsys.readouterr()
    bone = np.count_nonzero(threshold_labels(hu) == 1) * 0.75 * 0.8 * 2.5 / 1000
    assert printed.out.splitlines()[:2] == ["organ         ml", f"bone   {bone:9.1f}"]
    assert printed.out.splitlines()[-1].startswith(f"wrote {out / 'labels.nii.gz'} in ")
    assert printed.err.startswith("predict: 4/4 in ")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_names_are_printed_on_any_terminal(tmp_path, encoding):
    organs = ("\u017co\u0142\u0105dek", "w\u0105troba")
    model = write_threshold_model(tmp_path / "m.onnx", card=threshold_card(organs=organs))
    scan, table = write(tmp_path / "\u0142.nii.gz", random_hu((6, 5, 4))), tmp_path / "table.txt"
    args = [str(model), str(scan), "-o", str(tmp_path / "\u0105.nii.gz"), "--organ-table", str(table)]
    done = subprocess.run(
        [sys.executable, "-m", "smile_runtime", *args],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.decode(encoding)
    for organ in organs:
        assert organ.encode(encoding, "backslashreplace").decode(encoding) in printed
        assert organ in table.read_text(encoding="utf-8")
    assert "Traceback" not in done.stderr.decode(encoding)


def test_the_installed_command(case):
    args, out = case
    script = os.path.join(os.path.dirname(sys.executable), "smile-predict")
    done = subprocess.run([script, *args], capture_output=True, text=True, check=False)
    assert (done.returncode, left_behind(out)) == (0, ["labels.nii.gz"]), done.stderr


def test_help_and_version_load_nothing_heavy():
    script = (
        "import sys; from smile_runtime.predict.cli import main\n"
        "try: main([sys.argv[1]])\n"
        "finally: print(sorted({'numpy', 'nibabel', 'onnxruntime'} & set(sys.modules)), file=sys.stderr)"
    )
    for option, text in (("--help", "usage: smile-predict"), ("--version", f"smile-predict {__version__}")):
        done = subprocess.run([sys.executable, "-c", script, option], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "[]\n")
        assert done.stdout.startswith(text)


def test_help_answers_in_a_third_of_a_second():
    assert shortest(lambda: seconds_of_python("-m", "smile_runtime", "--help"), 0.3) <= 0.3  # s


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "model, scan, -o/--output"),
        (["model.onnx", "scan.nii.gz"], "-o/--output"),
        (["m", "s", "-o", "l", "--provider", "tpu"], "invalid choice: 'tpu'"),
        (["m", "s", "-o", "l", "--threads", "two"], "invalid int value: 'two'"),
        (["m", "s", "-o", "l", "a\nb"], "unrecognized arguments: a b"),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(args, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert err.endswith("; see smile-predict --help\n")
    assert err.count("\n") == 1


def test_ctrl_c_is_status_130(case, monkeypatch, capsys):
    args, out = case

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "predict", interrupted)
    assert main(args) == 130
    assert left_behind(out) == []
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_of_writing_leaves_nothing(case, number, status):
    args, out = case
    script = (
        "import os, signal, sys, time\n"
        "from smile_runtime.predict.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "def wait(descriptor): print(os.listdir(sys.argv[-1]), flush=True); time.sleep(600)\n"
        "os.fsync = wait\n"
        "sys.exit(main(sys.argv[1:-1]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *args, str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert ".tmp-" in process.stdout.readline()  # the label map is there, under its temporary name
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)  # only a defect takes that long
    assert process.returncode == status
    assert left_behind(out) == []
    assert "Traceback" not in errors


def test_a_disk_that_fills_up(case, monkeypatch, capsys):
    args, out = case
    (out / "labels.nii.gz").write_text("old")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert main(args) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"error: {args[-1]}: cannot be written (no space left on device); choose another place"
    assert (out / "labels.nii.gz").read_text() == "old"
    assert left_behind(out) == ["labels.nii.gz"]


def test_a_write_that_the_system_refuses(tmp_path, threshold_model):
    """No part is simulated: the system allows files of 4 KiB, the label map is longer."""
    (tmp_path / "out").mkdir()
    scan = write(tmp_path / "scan.nii.gz", random_hu((60, 50, 40)))
    done = command(
        *(str(threshold_model), str(scan), "-o", str(tmp_path / "out" / "labels.nii.gz")),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert done.returncode == 2
    assert f"error: {tmp_path / 'out' / 'labels.nii.gz'}: cannot be written (" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert left_behind(tmp_path / "out") == []


def test_an_error_is_one_line_even_with_a_line_break_in_a_name(tmp_path, capsys):
    assert main([str(tmp_path / "a\nb"), "scan.nii", "-o", "labels.nii"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
