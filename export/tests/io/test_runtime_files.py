import errno
import json
import os
import stat
import subprocess
import sys

import pytest

from smile_runtime.errors import InputError
from smile_runtime.io.files import (
    atomic_path,
    check_readable,
    check_writable,
    read_json,
    refuse_overwrite,
    sha256,
    write_json,
)


def names(folder):
    return sorted(item.name for item in folder.iterdir())


@pytest.mark.parametrize("name", ["labels.nii.gz", "case.1.nii.gz", "image.b2nd", "plain", "v1.2.json"])
def test_the_temporary_name_keeps_the_suffixes(tmp_path, name):
    final = tmp_path / name
    with atomic_path(final) as temporary:
        assert temporary.parent == final.parent
        assert temporary.name.endswith(".nii.gz" if name.endswith(".nii.gz") else final.suffix)
        temporary.write_text("new")
        assert not final.exists()
    assert names(tmp_path) == [name]
    assert final.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    final = tmp_path / "a.json"
    final.write_text("old")
    context = atomic_path(final)
    context.__enter__().write_text("half")
    assert len(names(tmp_path)) == 2
    assert context.__exit__(error, error(), None) is not True
    assert names(tmp_path) == ["a.json"]
    assert final.read_text() == "old"


def test_a_full_disk_is_the_users_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"a\.json: cannot be written \(no space left on device\)"):
        write_json(tmp_path / "a.json", {})
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_folders_is_no_failure(tmp_path, monkeypatch, number):
    failing_fsync(monkeypatch, stat.S_ISDIR, number)
    write_json(tmp_path / "a.json", {"a": 1})
    assert read_json(tmp_path / "a.json", "write it again") == {"a": 1}


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        *((stat.S_ISDIR, number) for number in (errno.EIO, errno.ENOSPC, errno.EDQUOT)),
        *((stat.S_ISREG, number) for number in (errno.EIO, errno.EINVAL, errno.ENOTSUP)),
    ],
)
def test_other_errors_of_a_flush_are_failures(tmp_path, monkeypatch, kind, number):
    failing_fsync(monkeypatch, kind, number)
    with pytest.raises(InputError, match=r"a\.json: cannot be written"):
        write_json(tmp_path / "a.json", {})


def failing_fsync(monkeypatch, kind, number):
    """Let os.fsync fail for folders or for files."""
    real = os.fsync

    def fsync(descriptor):
        if kind(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def test_an_error_of_another_file_is_not_blamed_on_this_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_path(tmp_path / "a") as temporary:
        temporary.write_bytes((tmp_path / "elsewhere").read_bytes())


def test_a_rename_that_fails_is_the_users_error(tmp_path):
    final = tmp_path / "a"
    context = atomic_path(final)
    context.__enter__().write_text("x")
    final.mkdir()  # somebody else was quicker
    with pytest.raises(InputError, match="cannot be written"):
        context.__exit__(None, None, None)
    assert names(tmp_path) == ["a"]


def test_the_file_gets_the_usual_permissions(tmp_path):
    write_json(tmp_path / "a.json", {})
    (tmp_path / "b").touch()
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "folder" / "target.json")
    write_json(tmp_path / "link.json", [1])
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "folder" / "target.json").read_text()) == [1]


@pytest.mark.parametrize("writable", [check_writable, lambda path: atomic_path(path).__enter__()])
def test_paths_that_cannot_be_written(tmp_path, writable):
    (tmp_path / "file").touch()
    (tmp_path / "device").symlink_to("/dev/full")
    bad = [tmp_path, tmp_path / "file" / "a", tmp_path / "no folder" / "a", tmp_path / "device", tmp_path / ("a" * 300)]
    for path in bad:
        with pytest.raises(InputError, match="cannot be written"):
            writable(path)
    assert names(tmp_path) == ["device", "file"]


def test_check_writable_leaves_no_trace(tmp_path, monkeypatch):
    check_writable(tmp_path / "a")
    assert names(tmp_path) == []

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    with pytest.raises(InputError, match="permission denied"):
        check_writable(tmp_path / "a")


def test_check_readable(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    assert check_readable(tmp_path / "a") == 3
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    for path, why in [("none", "no such file"), (".", "folder"), ("pipe", "pipe"), ("a" * 300, "too long")]:
        with pytest.raises(InputError, match=why):
            check_readable(tmp_path / path)


def test_an_input_is_never_overwritten_under_any_name(tmp_path):
    source = tmp_path / "scan"
    source.touch()
    (tmp_path / "soft").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    (tmp_path / "folder").mkdir()
    for out in (source, tmp_path / "soft", tmp_path / "hard", tmp_path / "folder" / ".." / "scan"):
        with pytest.raises(InputError, match="overwrite"):
            refuse_overwrite(out, [tmp_path / "other", source])
    refuse_overwrite(tmp_path / "new", [source])


def test_json_keeps_the_order_and_refuses_what_json_does_not_know(tmp_path):
    write_json(tmp_path / "a.json", {"z": 1, "a": "Übersicht"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "z": 1,\n  "a": "Übersicht"\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", float("nan"))
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "there is no such file; make it"),
        (b"\xff{}", "not a text file in UTF-8; mend it"),
        ('{"a": "\u00e9"}'.encode("latin-1"), "not a text file in UTF-8; mend it"),
        (b"", "not valid JSON .*; mend it"),
        (b'{"a": 1,}', "not valid JSON .*; mend it"),
        (b'{"a": 1} {}', "not valid JSON .*; mend it"),
        (b'{"a": NaN}', "not valid JSON .NaN is not a JSON number.; mend it"),
        (b'{"a": [-Infinity]}', "not valid JSON .-Infinity is not a JSON number.; mend it"),
        (b'{"a": ' + b"[" * 100_000, "not valid JSON .it is nested too deeply.; mend it"),
        (b"[1]", "not valid JSON .it is not a JSON object.; mend it"),
        (b'"text"', "not valid JSON .it is not a JSON object.; mend it"),
    ],
)
def test_json_that_cannot_be_read_is_one_sentence_with_a_remedy(tmp_path, content, why):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{path}: {why}$") as caught:
        read_json(path, "mend it", missing="make it")
    assert "\n" not in str(caught.value)


def test_json_is_read_as_utf_8_whatever_the_locale(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"organ": "Übersicht"})
    code = "import sys; from smile_runtime.io.files import read_json; print(ascii(read_json(sys.argv[1], '')))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, path], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "{'organ': '\\xdcbersicht'}\n"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors save it
    assert read_json(path, "") == {"organ": "Übersicht"}


def test_json_in_a_folder_or_without_permission(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=f"^{tmp_path}: cannot be read .is a directory.; mend it$"):
        read_json(tmp_path, "mend it", missing="make it")
    with pytest.raises(InputError, match=r"a/b: there is no such file; mend it$"):
        read_json(tmp_path / "a" / "b", "mend it")

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(InputError, match=r"cannot be read .permission denied.; mend it$"):
        read_json(tmp_path / "a", "mend it", missing="make it")


def test_the_digest_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")  # the first example of FIPS 180-2
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    for unreadable in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match=f"{unreadable}: cannot be read"):
            sha256(unreadable)
