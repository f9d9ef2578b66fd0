"""What an export writes beside the file: a model repository of Triton, and a folder like a MONAI Bundle."""

import errno
import json
import os
import signal
import stat
from contextlib import nullcontext
from typing import get_args

import nibabel as nib
import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from smile_fast.cli.main import main
from smile_fast.exporter import onnx_file
from smile_fast.exporter.bundle import inference_config, metadata
from smile_fast.exporter.folders import atomic_folder
from smile_fast.exporter.graph import Probabilities, fold_batchnorm, to_onnx
from smile_fast.exporter.triton_repo import triton_config
from smile_runtime.errors import InputError
from smile_runtime.model.exported import Model, ModelCard
from smile_runtime.predict.predictor import Predictor
from smile_runtime.volume.body import BodyRule
from smile_runtime.volume.pixel_size import PixelSpace
from tests.runs import ORGANS, ct, make_run, make_store, truth

INT32, STRING, INT64, MESSAGE, ENUM, UINT64 = 5, 9, 3, 11, 14, 4
# message -> field -> number, type, name of its type, repeated: the part of the server's model_config.proto that we use
SCHEMA = {
    "ModelConfig": {
        "name": (1, STRING, None, False),
        "max_batch_size": (4, INT32, None, False),
        "input": (5, MESSAGE, "ModelInput", True),
        "output": (6, MESSAGE, "ModelOutput", True),
        "instance_group": (7, MESSAGE, "ModelInstanceGroup", True),
        "default_model_filename": (8, STRING, None, False),
        "dynamic_batching": (11, MESSAGE, "ModelDynamicBatching", False),
        "parameters": (14, MESSAGE, "ModelConfig.ParametersEntry", True),
        "backend": (17, STRING, None, False),
    },
    "ModelInput": {
        "name": (1, STRING, None, False),
        "data_type": (2, ENUM, "DataType", False),
        "dims": (4, INT64, None, True),
    },
    "ModelOutput": {
        "name": (1, STRING, None, False),
        "data_type": (2, ENUM, "DataType", False),
        "dims": (3, INT64, None, True),
    },
    "ModelInstanceGroup": {"count": (2, INT32, None, False), "kind": (4, ENUM, "Kind", False)},
    "ModelDynamicBatching": {
        "preferred_batch_size": (1, INT32, None, True),
        "max_queue_delay_microseconds": (2, UINT64, None, False),
    },
    "ModelParameter": {"string_value": (1, STRING, None, False)},
}
ENUMS = {
    "DataType": {
        "TYPE_INVALID": 0,
        "TYPE_UINT8": 2,
        "TYPE_INT16": 7,
        "TYPE_FP16": 10,
        "TYPE_FP32": 11,
        "TYPE_FP64": 12,
    },
    "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2},
}


def add_fields(message, fields):
    for name, (number, kind, type_name, repeated) in fields.items():
        field = message.field.add(name=name, number=number, type=kind, label=3 if repeated else 1)
        if type_name:
            field.type_name = f".inference.{type_name}"


@pytest.fixture(scope="module")
def model_config():
    """The server's message ModelConfig."""
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    for name, fields in SCHEMA.items():
        add_fields(file.message_type.add(name=name), fields)
    entry = next(message for message in file.message_type if message.name == "ModelConfig").nested_type.add(
        name="ParametersEntry"
    )
    entry.options.map_entry = True
    add_fields(entry, {"key": (1, STRING, None, False), "value": (2, MESSAGE, "ModelParameter", False)})
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def card(**changes):
    given = {"organs": ORGANS, "channels": 3, "window": (-160.0, 240.0), "head": "sigmoid"} | changes
    return ModelCard(**given)


@pytest.mark.parametrize("probabilities", [None, *get_args(Probabilities)])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_triton_reads_the_config(model_config, precision, probabilities):
    found = text_format.Parse(triton_config(card(precision=precision), probabilities, "a model"), model_config())
    assert (found.name, found.backend, found.default_model_filename) == ("a model", "onnxruntime", "model.onnx")
    assert [(one.name, one.data_type, list(one.dims)) for one in found.input] == [("hu", 7, [3, -1, -1])]
    outputs = [("labels", 2, [-1, -1])]
    if probabilities:
        outputs.append(("probabilities", {"uint8": 2, "float16": 10, "float32": 11}[probabilities], [2, -1, -1]))
    assert [(one.name, one.data_type, list(one.dims)) for one in found.output] == outputs
    kinds = {"fp32": "KIND_AUTO", "fp16": "KIND_GPU", "int8": "KIND_CPU"}
    assert [(group.count, group.kind) for group in found.instance_group] == [(1, ENUMS["Kind"][kinds[precision]])]
    sizes = list(found.dynamic_batching.preferred_batch_size)
    assert sizes == sorted(sizes) != []
    assert sizes[-1] <= found.max_batch_size
    assert found.dynamic_batching.max_queue_delay_microseconds > 0
    assert json.loads(found.parameters["organs"].string_value) == list(ORGANS)
    assert json.loads(found.parameters["window"].string_value) == [-160.0, 240.0]


def test_triton_shares_no_batch_between_scans_of_other_pixels(model_config):
    space = PixelSpace(0.8, 8, (0.6, 0.9), (1.0, 5.0), 0.15)
    found = text_format.Parse(triton_config(card(pixels=space), "uint8", "a model"), model_config())
    assert [(one.name, one.data_type, list(one.dims)) for one in found.input] == [
        ("hu", 7, [-1, 3, -1, -1]),
        ("pixel_spacing", 12, [2]),
    ]
    assert [list(one.dims) for one in found.output] == [[-1, -1, -1], [-1, 2, -1, -1]]
    assert found.max_batch_size == 0
    assert not found.HasField("dynamic_batching")
    assert PixelSpace.from_json(json.loads(found.parameters["pixels"].string_value)) == space


@pytest.mark.parametrize("rule", [None, BodyRule(-400, 7)])
def test_triton_tells_its_clients_how_to_leave_the_air_out(model_config, rule):
    found = text_format.Parse(triton_config(card(body=rule), None, "a model"), model_config())
    assert BodyRule.from_json(json.loads(found.parameters["body"].string_value)) == rule


@pytest.mark.parametrize("organ", ['the "left" kidney', "Bauchspeicheldrüse", r"back\slash", "肝"])
def test_any_name_of_an_organ_survives_the_config(model_config, organ):
    found = text_format.Parse(triton_config(card(organs=(organ,)), None, organ), model_config())
    assert found.name == organ
    assert json.loads(found.parameters["organs"].string_value) == [organ]


def test_a_config_with_a_misspelt_field_would_not_pass(model_config):
    text = triton_config(card(), None, "model").replace("dynamic_batching", "dynamic_batch")
    with pytest.raises(text_format.ParseError):
        text_format.Parse(text, model_config())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders")
    return make_run(folder / "my run", make_store(folder / "store", {"train_0": truth(), "test_0": truth()}))


@pytest.fixture(scope="module")
def graph(run):
    return to_onnx(fold_batchnorm(run.load_model()), probabilities="uint8")


@pytest.fixture
def quick(graph, monkeypatch):
    """Exports without the time of the exporter."""
    monkeypatch.setattr(
        onnx_file, "build", lambda *arguments: (onnx.ModelProto.FromString(graph.SerializeToString()), {})
    )


@pytest.fixture
def written(run, quick, tmp_path, capsys):
    arguments = [str(run.path), "--triton-repo", str(tmp_path / "deep" / "repo"), "--bundle", str(tmp_path / "bundle")]
    assert main(["export", *arguments, "--probabilities", "uint8"]) == 0
    out = capsys.readouterr().out
    assert f"wrote {tmp_path / 'deep' / 'repo' / 'my_run'}\nwrote {tmp_path / 'bundle'}\n" in out
    return tmp_path


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_repository_is_as_triton_wants_it(written, model_config):
    repository = written / "deep" / "repo"
    assert files(repository) == ["my_run/1/model.onnx", "my_run/config.pbtxt"]
    found = text_format.Parse((repository / "my_run" / "config.pbtxt").read_text(), model_config())
    session = onnxruntime.InferenceSession(repository / "my_run" / "1" / "model.onnx")
    types = {"tensor(uint8)": 2, "tensor(int16)": 7, "tensor(double)": 12}
    for given, described in ((session.get_inputs(), found.input), (session.get_outputs(), found.output)):
        assert [(one.name, types[one.type]) for one in given] == [(one.name, one.data_type) for one in described]
        for one, other in zip(given, described, strict=True):
            assert [size if isinstance(size, int) else -1 for size in one.shape] == list(other.dims)


def test_a_repository_keeps_its_other_models(run, quick, tmp_path, capsys):
    other = tmp_path / "repo" / "other" / "config.pbtxt"
    other.parent.mkdir(parents=True)
    other.write_text("name: 'other'")
    arguments = ["export", str(run.path), "--triton-repo", str(tmp_path / "repo")]
    assert main(arguments) == 0
    assert other.read_text() == "name: 'other'"
    before = files(tmp_path)
    assert main(arguments) == 2
    assert "my_run: already exists and is not an empty folder" in capsys.readouterr().err
    assert files(tmp_path) == before


def test_the_bundle_is_laid_out_as_monai_wants_it(written):
    bundle = written / "bundle"
    assert files(bundle) == ["configs/inference.json", "configs/metadata.json", "docs/README.md", "models/model.onnx"]
    found = json.loads((bundle / "configs" / "metadata.json").read_text())
    wanted = "version monai_version pytorch_version numpy_version required_packages_version task description authors"
    assert {*wanted.split(), "copyright", "network_data_format"} <= set(found)
    tensor_keys = "type format modality num_channels spatial_shape dtype value_range is_patch_data channel_def".split()
    tensors = {**found["network_data_format"]["inputs"], **found["network_data_format"]["outputs"]}
    assert set(tensors) == {"hu", "pixel_spacing", "labels", "probabilities"}
    for tensor in tensors.values():
        assert set(tensor) == set(tensor_keys)
    assert tensors["labels"]["channel_def"] == {"0": "background", "1": "liver", "2": "pancreas"}
    assert (tensors["probabilities"]["dtype"], tensors["probabilities"]["value_range"]) == ("uint8", [0, 255])
    file = Model(bundle / "models" / "model.onnx")
    assert found["smile_fast"] == json.loads(file.card.to_json())
    readme = (bundle / "docs" / "README.md").read_text()
    assert "| 2 | pancreas |" in readme
    assert f"{file.card.parity['identical_share']:.4%}" in readme


def test_metadata_without_probabilities_has_one_output():
    assert list(metadata(card(), None, "name")["network_data_format"]["outputs"]) == ["labels"]


def test_the_inference_config_does_what_the_command_does(written, tmp_path, capsys):
    """Its expressions, evaluated as a bundle evaluates them: "@name" is another entry."""
    config = inference_config()
    bundle, scans, out = written / "bundle", tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    nib.save(nib.Nifti1Image(ct(5).transpose(2, 1, 0), np.eye(4)), scans / "a.nii.gz")
    (scans / "bad.nii.gz").write_bytes(b"no scan")
    nib.save(nib.Nifti1Image(ct(6).transpose(2, 1, 0), np.eye(4)), scans / "c.nii")
    names = {"bundle_root": str(bundle), "dataset_dir": str(scans), "output_dir": str(out), "options": ["--no-crop"]}
    for statement in config["imports"]:
        exec(statement.removeprefix("$"), names)
    names["model_path"] = eval(config["model_path"].removeprefix("$").replace("@", ""), names)
    (expression,) = (entry.removeprefix("$").replace("@", "") for entry in config["run"])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match="2"):
            eval(expression, names)
        assert "bad.nii.gz" in capsys.readouterr().err
        (scans / "bad.nii.gz").unlink()
        eval(expression, names)
    finally:
        signal.signal(signal.SIGTERM, handler)
    predictor = Predictor(names["model_path"], crop=False)
    for scan in (scans / "a.nii.gz", scans / "c.nii"):
        found = np.asarray(nib.load(out / f"{scan.name[0]}.nii.gz").dataobj)
        predictor.predict_file(scan, tmp_path / "alone.nii.gz")
        np.testing.assert_array_equal(found, np.asarray(nib.load(tmp_path / "alone.nii.gz").dataobj))
        assert found.any()


@pytest.mark.parametrize("taken", ["bundle/file", "repo/my_run/file", "bundle", "repo"])
def test_what_is_in_the_way_is_refused_before_any_work(run, tmp_path, monkeypatch, capsys, taken):
    monkeypatch.setattr(type(run), "load_model", lambda self: pytest.fail("the network was loaded"))
    (tmp_path / taken).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / taken).write_text("mine")
    arguments = ["--triton-repo", str(tmp_path / "repo"), "--bundle", str(tmp_path / "bundle")]
    assert main(["export", str(run.path), str(tmp_path / "model.onnx"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / taken.split('/')[0]}")
    assert ": already exists and is not an empty folder; choose" in error or ": no folder can be made in " in error
    assert files(tmp_path) == [taken]


def write_half(target):
    with atomic_folder(target) as folder:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("number", "written"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_file_system_that_cannot_flush_folders_is_no_failure(tmp_path, monkeypatch, number, written):
    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with nullcontext() if written else pytest.raises(InputError, match="new: cannot be written"):
        with atomic_folder(tmp_path / "new") as folder:
            (folder / "below").mkdir()
    assert (tmp_path / "new" / "below").is_dir() is written


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    with pytest.raises(InputError, match="no space left"):
        write_half(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty") as folder:
        (folder / "whole").write_text("whole")
    assert files(tmp_path) == ["empty/whole"]
