import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import onnx
import pytest
import torch

import smile_fast
from smile_fast.cli.main import main
from smile_fast.exporter import Targets, certificate, export_run, format_certificate, onnx_file
from smile_fast.exporter.certificate import REQUIREMENTS, Sample, certify, format_parity, parity_samples
from smile_fast.exporter.graph import OPSET
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.inference import predict_labels
from smile_runtime.errors import InputError
from smile_runtime.model.exported import METADATA_KEY, Model
from smile_runtime.predict.predictor import Predictor
from smile_runtime.volume.pixel_size import PixelSpace
from smile_runtime.volume.preprocessing import slice_context
from tests.exports import random_hu, shake_batchnorms, torch_answer
from tests.runs import ORGANS, SHAPE, SPACING, balance, ct, make_run, make_store, truth
from tests.tolerances import EXPORTED_PROBABILITY

MIN_IDENTICAL = REQUIREMENTS["fp32"].share
SIZES = [(1, 40, 48), (3, 33, 57), (2, 96, 80), (5, 17, 64)]  # N, H, W


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def run(folder):
    store = make_store(folder / "store", {"train_0": truth(), "test_0": truth()})
    run = make_run(folder / "run", store, channels=3)
    model = run.load_model()
    shake_batchnorms(model)
    balance(model, slice_context(ct(), range(SHAPE[0]), 3))
    Checkpoint({"model": dict(model.state_dict())}).save(run.model_path)
    return run


@pytest.fixture(scope="module")
def exported(run, folder):
    """A sigmoid network that sees three slices, with probabilities."""
    return export_run(run, Targets(folder / "model.onnx"), probabilities="float32")


@pytest.fixture(scope="module")
def file(exported):
    return Model(exported.paths[0])


@pytest.mark.parametrize("shape", SIZES)
def test_file_computes_what_the_network_computes_at_every_size(run, file, shape):
    hu = random_hu(shape, 3)
    labels, probabilities = torch_answer(run.load_model(), hu)
    found = file.labels(hu)
    assert len(np.unique(labels)) >= 2  # else the comparison would say little
    assert (found.shape, found.dtype) == (labels.shape, np.uint8)
    assert (found == labels).mean() >= MIN_IDENTICAL
    np.testing.assert_allclose(file.probabilities(hu), probabilities, **EXPORTED_PROBABILITY)


def test_file_holds_everything_and_nothing_of_this_machine(exported):
    content = exported.paths[0].read_bytes()
    assert exported.size == len(content)
    model = onnx.load_from_string(content)
    assert [opset.domain for opset in model.opset_import] == [""]
    assert model.opset_import[0].version == OPSET
    assert {node.domain for node in model.graph.node} == {""}
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert [entry.key for entry in model.metadata_props] == [METADATA_KEY]
    for trace in (b"segmenter.py", b"Traceback", str(Path(smile_fast.__file__).parent).encode(), b"torch.onnx"):
        assert trace not in content
    inputs = [(info.name, info.type.tensor_type.elem_type) for info in model.graph.input]
    assert inputs == [("hu", onnx.TensorProto.INT16), ("pixel_spacing", onnx.TensorProto.DOUBLE)]
    sizes = [size.dim_param or size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["N", 3, "H", "W"]


def test_card_tells_how_to_run_it_and_where_it_comes_from(exported, run, file):
    card = file.card
    assert card == exported.card
    assert (card.organs, card.channels, card.window, card.head) == (ORGANS, 3, (-160.0, 240.0), "sigmoid")
    assert card.threshold == 0.5
    assert card.provenance["method"] == "smile"
    assert card.provenance["settings"] == json.loads(json.dumps(run.config.to_json()))
    assert card.provenance["cases"] == {"train": 1, "validation": 0, "test": 1}
    for name in ("store_sha256", "config_sha256", "annotations_sha256", "weights_sha256"):
        assert re.fullmatch("[0-9a-f]{64}", card.provenance[name])
    assert card.provenance["versions"]["torch"] == torch.__version__
    assert card.provenance["commit"] is None or re.fullmatch("[0-9a-f]{40}", card.provenance["commit"])
    assert str(run.path) not in card.to_json()
    assert card.parity["cases"] == ["test_0", "train_0"]
    assert len(card.parity["sizes"]) == 4  # a box that is the whole slice, a cut-out, and the slice in other pixels
    assert len(card.parity["pixels_mm"]) == 3
    assert list(SHAPE[1:]) in card.parity["sizes"]
    assert card.parity["slices"] == 12
    assert [card.parity[name] for name in ("network_on", "file_on", "probabilities_on")] == ["cpu", ["cpu"], "cpu"]
    assert card.pixels == run.pixel_space == PixelSpace(1.414, 8, (1.0, 2.0), (4.0, 4.0), 0.15)
    assert set(card.parity["dice"]) == set(ORGANS)
    assert min(card.parity["dice"].values()) >= REQUIREMENTS["fp32"].dice
    assert card.parity["identical_share"] >= MIN_IDENTICAL
    assert card.parity["max_probability_difference"] <= EXPORTED_PROBABILITY["atol"]
    shown = format_certificate(exported)
    assert f"parity: {card.parity['identical_voxels']} of {card.parity['voxels']} voxels" in shown
    assert "  compared: torch on cpu, the file in onnxruntime on cpu\n" in shown
    assert "1 liver, 2 pancreas" in shown
    assert "largest difference of a probability" in shown


def test_predictor_gives_what_training_side_inference_gives(run, exported, tmp_path):
    slices = ct(5)
    scan = np.ascontiguousarray(slices.transpose(2, 1, 0)[::-1, ::-1])  # the scan is RAS
    nib.save(nib.Nifti1Image(scan, np.diag([1.0, 2.0, 4.0, 1.0])), tmp_path / "scan.nii.gz")
    Predictor(exported.paths[0], threads=1).predict_file(tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz")
    found = np.asarray(nib.load(tmp_path / "labels.nii.gz").dataobj)
    expected = predict_labels(run.load_model(), slices)
    assert len(np.unique(expected)) == 3
    assert (found[::-1, ::-1].transpose(2, 1, 0) == expected).mean() >= MIN_IDENTICAL


def other_network(run):
    """The same network with its organs swapped."""
    model = run.load_model()
    head = model.classifier[-1]
    head.weight.data, head.bias.data = head.weight.data.flip(0), head.bias.data.flip(0)
    return model


def test_certificate_refuses_a_file_of_another_network(run, file):
    with pytest.raises(InputError, match=r"agree on \d+\.\d+% of the voxels only \(worst case test_0"):
        certify(other_network(run), file, [Sample("test_0", random_hu((1, 40, 48), 3), SPACING)])


def test_a_file_that_differs_is_not_left_behind(run, exported, tmp_path, monkeypatch, capsys):
    proto = onnx.load_from_string(exported.paths[0].read_bytes())
    monkeypatch.setattr(onnx_file, "build", lambda *arguments: (proto, {}))
    swapped = other_network(run)
    monkeypatch.setattr(type(run), "load_model", lambda self: swapped)
    folders = ["--triton-repo", str(tmp_path / "new" / "repository"), "--bundle", str(tmp_path / "bundle")]
    assert main(["export", str(run.path), str(tmp_path / "model.onnx"), *folders]) == 2
    assert "error: fp32 export: file and network agree on" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "model.onnx").write_bytes(b"the last good one")
    assert main(["export", str(run.path), str(tmp_path / "model.onnx")]) == 2
    assert (tmp_path / "model.onnx").read_bytes() == b"the last good one"


class Answers:
    """A file that gives the network's own answers, but for a change of its label map or its probabilities."""

    has_probabilities = True

    def __init__(self, model, card, change, more=0.0):
        self.card, self._model, self._change, self._more = card, model, change, more

    def labels(self, hu, pixel_spacing):
        return self._change(torch_answer(self._model, hu)[0])

    def probabilities(self, hu, pixel_spacing):
        return torch_answer(self._model, hu)[1] + np.float32(self._more)


def test_every_provider_must_agree_and_is_named(run, file):
    """What the CPU's library answers says nothing of another's: each is compared on its own."""
    samples, model = [Sample("test_0", random_hu((1, 160, 160), 3), SPACING)], run.load_model()
    right = Answers(model, file.card, np.copy)
    found = certify(model, right, samples, others={"cuda": right})
    assert found["file_on"] == ["cpu", "cuda"]
    assert found["network_on"] == "cpu"
    assert found["identical_share"] == 1.0
    few = Answers(model, file.card, without_few_voxels_of_liver)
    with pytest.raises(InputError, match=r"fp32 export: file on cuda and network agree on 99\.98"):
        certify(model, right, samples, others={"cuda": few})
    with pytest.raises(InputError, match=r"fp32 export: file and network agree on 99\.98"):
        certify(model, few, samples, others={"cuda": right})
    least = certify(model, right, samples, others={"cuda": Answers(model, file.card, without_a_voxel)})
    assert least["voxels"] - least["identical_voxels"] == 1
    assert least["dice"]["liver"] < 1.0


@pytest.mark.parametrize("least", ["cpu", "cuda"])
def test_probabilities_are_compared_where_the_certificate_says(run, file, least):
    """Whichever provider's label map agrees least, and whatever the other one's probabilities are."""
    samples, model = [Sample("test_0", random_hu((1, 160, 160), 3), SPACING)], run.load_model()
    change = {"cpu": np.copy, "cuda": np.copy, least: without_a_voxel}
    cpu = Answers(model, file.card, change["cpu"], more=0.4)
    cuda = Answers(model, file.card, change["cuda"])
    for probabilities, on, difference in ((None, "cpu", 0.4), (("cpu", cpu), "cpu", 0.4), (("cuda", cuda), "cuda", 0)):
        found = certify(model, cpu, samples, probabilities=probabilities, others={"cuda": cuda})
        assert found["probabilities_on"] == on
        assert found["max_probability_difference"] == pytest.approx(difference)
        assert f"  largest difference of a probability, on {on}: {difference:.1e}" in format_parity(found)
        assert found["voxels"] - found["identical_voxels"] == 1


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("asked", [None, "float32"])
def test_the_file_is_compared_on_the_gpu_of_the_network(run, exported, tmp_path, monkeypatch, index, asked):
    """Here a network says that it is on a GPU, and files are not loaded."""
    device, network, certified = torch.device("cuda", index), run.load_model(), {}
    parameter = SimpleNamespace(device=device)
    there = SimpleNamespace(config=network.config, to=lambda device: there, parameters=lambda: iter([parameter]))
    monkeypatch.setattr(type(run), "load_model", lambda self: there)
    proto = onnx.load_from_string(exported.paths[0].read_bytes())
    monkeypatch.setattr(onnx_file, "build", lambda *arguments: (proto, {}))
    monkeypatch.setattr(onnx_file, "Model", lambda path, provider="cpu", gpu=None: (path.name, provider, gpu))

    def certify_nothing(model, cpu, samples, **others):
        certified.update(others, cpu=cpu)
        return exported.card.parity

    monkeypatch.setattr(onnx_file, "certify", certify_nothing)
    export_run(run, Targets(tmp_path / "model.onnx"), probabilities=asked, device=device)
    assert certified == {
        "cpu": ("model.onnx", "cpu", None),
        "others": {"cuda": ("model.onnx", "cuda", index)},
        "probabilities": ("cuda", ("twin.onnx" if asked is None else "model.onnx", "cuda", index)),
    }


def without_a_voxel(labels):
    changed = labels.copy()
    changed.reshape(-1)[np.flatnonzero(labels == 1)[:1]] = 0
    return changed


def without_few_voxels_of_liver(labels):
    changed = labels.copy()
    changed.reshape(-1)[np.flatnonzero(labels == 1)[:3]] = 0
    return changed


@pytest.mark.parametrize("precision", REQUIREMENTS)
def test_certificate_refuses_an_organ_that_shrinks(run, file, precision, monkeypatch):
    """Three voxels of thousands pass as a share of all; an organ is more than a share of all."""
    card = replace(file.card, precision=precision)
    samples = [Sample("test_0", random_hu((1, 160, 160), 3), SPACING)]
    model = run.load_model()
    assert certify(model, Answers(model, card, np.copy), samples)["identical_share"] == 1.0
    monkeypatch.setitem(REQUIREMENTS, precision, replace(REQUIREMENTS[precision], share=0.0, dice=1.0))
    shrunk = Answers(model, card, without_few_voxels_of_liver)
    with pytest.raises(InputError, match=r"agree on liver with a Dice of 0.99\d\d only"):
        certify(model, shrunk, samples)
    monkeypatch.setattr(certificate, "MIN_ORGAN_VOXELS", 10**6)
    assert certify(model, shrunk, samples)["dice"]["liver"] < 1.0


def test_requirements_tighten_with_precision():
    shares = [REQUIREMENTS[precision].share for precision in ("fp32", "fp16", "int8")]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 0.9999


def test_command_prints_the_certificate(run, exported, tmp_path, monkeypatch, capsys):
    proto = onnx.load_from_string(exported.paths[0].read_bytes())
    monkeypatch.setattr(onnx_file, "build", lambda *arguments: (proto, {}))
    target = tmp_path / "model.onnx"
    assert main(["export", str(run.path), str(target), "--probabilities", "float32"]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {target}\n  fp32, ")
    assert Model(target).card == exported.card  # same input, same card
    assert main(["export", str(run.path), str(target)]) == 0
    plain = Model(target)
    assert not plain.has_probabilities
    assert plain.card.parity == exported.card.parity  # probabilities are compared all the same
    names = {node.op_type for node in onnx.load(target).graph.node}
    assert "ArgMax" in names
    assert "Sigmoid" not in names


def test_a_network_that_finds_nothing_is_reported(run, exported, tmp_path, monkeypatch, capsys):
    for dice, warned in ((1.0, False), (None, True)):
        parity = {**exported.card.parity, "dice": {"liver": 0.0, "pancreas": dice}}
        given = replace(exported, card=replace(exported.card, parity=parity))
        monkeypatch.setattr("smile_fast.exporter.export_run", lambda *_, given=given, **__: given)
        assert main(["export", str(run.path), str(tmp_path / "model.onnx")]) == 0
        err = capsys.readouterr().err
        assert ("warning: the network finds no voxel of pancreas in the checked cases" in err) == warned
        assert err.count("\n") == warned


def test_nothing_to_write_is_refused(run, capsys):
    assert main(["export", str(run.path)]) == 2
    assert "MODEL.onnx: nothing was asked for; name a file, --triton-repo or --bundle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("model.safetensors", "would overwrite the input"),
        ("../store/index.json", "would overwrite the input"),
        ("to the index.onnx", "would overwrite the input"),
        ("model.bin", "ends in .onnx"),
        ("none/model.onnx", "does not exist"),
        (".", "is a folder"),
    ],
)
def test_an_unusable_output_is_refused_before_any_work(run, monkeypatch, capsys, target, message):
    monkeypatch.setattr(type(run), "load_model", lambda self: pytest.fail("the network was loaded"))
    if target == "to the index.onnx":
        (run.path / target).symlink_to(run.store_path / "index.json")
    assert main(["export", str(run.path), str(run.path / target)]) == 2
    assert message in capsys.readouterr().err


def test_an_unfinished_run_and_a_lost_store_are_refused(folder, tmp_path, capsys):
    store = make_store(tmp_path / "store", {"train_0": truth()})
    untrained = make_run(tmp_path / "untrained", store, trained=False)
    assert main(["export", str(untrained.path), str(tmp_path / "model.onnx")]) == 2
    assert "error: " in capsys.readouterr().err
    trained = make_run(tmp_path / "trained", store)
    (tmp_path / "store" / "index.json").unlink()
    assert main(["export", str(trained.path), str(tmp_path / "model.onnx")]) == 2
    assert "smile-fast prepare" in capsys.readouterr().err
    assert not (tmp_path / "model.onnx").exists()


def test_parity_is_checked_where_organs_are(run):
    samples = parity_samples(run, run.store, channels=3)
    assert [sample.case for sample in samples] == ["test_0"] * 4 + ["train_0"] * 4
    busiest, of_the_liver = samples[0].hu  # slices 1..4 show the liver, 2 and 3 the pancreas as well
    np.testing.assert_array_equal(busiest, ct(1)[1:4])
    np.testing.assert_array_equal(of_the_liver, ct(1)[0:3])
    assert samples[1].hu.shape == (2, 3, round(40 / 0.6), 48 / 0.6)  # the same slices in finer pixels
    assert samples[1].spacing == (4.0, 2.0 * 40 / 67, 1.0 * 48 / 80)
    np.testing.assert_array_equal(samples[2].hu[0], ct(1)[[0, 0, 1]])
    assert samples[3].hu.shape[2:] != samples[0].hu.shape[2:]
    assert samples[5].hu.shape == (2, 3, round(40 / 1.7), round(48 / 1.7))  # and of the other case in coarser ones


def test_parity_sees_the_finest_and_the_coarsest_pixels_of_a_cohort(tmp_path):
    names = [f"train_{number:02}" for number in range(11)]
    spacings = {name: (4.0, 1.0 + number % 9, 1.0 + number % 9) for number, name in enumerate(names)}
    store = make_store(tmp_path / "store", dict.fromkeys(names, truth()), spacings=spacings)
    for pixel_size, of_a_case in (("native", 3), ("auto", 4)):
        run = make_run(tmp_path / pixel_size, store, pixel_size=pixel_size)
        samples = parity_samples(run, store, channels=1)
        assert len(samples) == 4 * of_a_case
        assert {1.0, 9.0} < {sample.spacing[1] for sample in samples}


def test_parity_cases_are_spread_over_a_large_cohort(tmp_path):
    store = make_store(tmp_path / "store", {f"train_{number:02}": truth() for number in range(11)})
    run = make_run(tmp_path / "run", store)
    cases = list(dict.fromkeys(sample.case for sample in parity_samples(run, store, channels=1)))
    assert cases == ["train_00", "train_02", "train_04", "train_06"]
