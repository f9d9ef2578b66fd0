"""Bad input of every kind through the command: one sentence, status 2, nothing left behind."""

import gzip
import json
import os
import re
import struct
import subprocess
import sys

import numpy as np
import onnxruntime as ort
import pytest
from hostile_models import HOSTILE
from nifti_files import AFFINE, content, dims, write
from onnx import TensorProto, helper, onnx_pb
from tiny_models import (
    external_tensor,
    hu_input,
    labels_output,
    threshold_card,
    threshold_nodes,
    with_probabilities,
    write_threshold_model,
)

from smile_runtime.errors import InputError
from smile_runtime.model.exported import METADATA_KEY, Model
from smile_runtime.predict.cli import main

BILLIONS = dims(10_000, 10_000, 10_000)  # 10^12 voxels
NUMBERS = np.zeros((3, 3, 3), np.float32)


def affine(**entries):
    matrix = AFFINE.copy()
    for name, value in entries.items():
        matrix[int(name[1]), int(name[2])] = value
    return matrix


def scan(name="scan.nii.gz", *args, **fields):
    """A case whose scan is a NIfTI file with the given voxels and header fields."""
    return lambda folder: {"scan": write(folder / name, *args, **fields)}


def raw(name, make):
    """A case whose scan is a file of the bytes that ``make`` returns."""

    def build(folder):
        (folder / name).write_bytes(make())
        return {"scan": folder / name}

    return build


DICOM = b"\0" * 128 + b"DICM" + b"\2\0\0\0UL\4\0" + b"\0" * 300


def series(folder):
    """As a scanner exports it: slices some folders down, without a suffix."""
    (folder / "patient" / "CT 1").mkdir(parents=True)
    (folder / "patient" / "CT 1" / "IM0001").write_bytes(DICOM)
    return folder


def foreign(folder):
    folder.mkdir()
    (folder / "a.nrrd").write_bytes(b"NRRD0004\n")
    return folder


def changed(body, position, value):
    return body[:position] + value + body[position + len(value) :]


def with_voxel(value):
    data = NUMBERS.copy()
    data[1, 2, 0] = value
    return data


def tiny_lie():
    """62 bytes or so of gzip that claim 512 x 512 x 100 voxels."""
    return gzip.compress(content(np.zeros((1, 1, 1), np.uint8), dim=dims(512, 512, 100)), 9)


SCANS = {
    "missing": (lambda folder: {"scan": folder / "none.nii.gz"}, "no such file"),
    "missing, of any name": (lambda folder: {"scan": folder / "none"}, "no such file"),
    "an empty folder": (lambda folder: {"scan": make_folder(folder / "scan.nii.gz")}, "holds no scan"),
    "a pipe": (lambda folder: {"scan": make_pipe(folder / "scan.nii.gz")}, "pipe"),
    "below a file": (lambda folder: {"scan": write(folder / "a.nii") / "scan.nii"}, "not a directory"),
    "a name too long": (lambda folder: {"scan": folder / ("a" * 300 + ".nii.gz")}, "too long"),
    "another suffix": (raw("scan.dcm", content), "named like a NIfTI"),
    "nothing in it, .nii": (raw("scan.nii", bytes), "not a NIfTI"),
    "nothing in it, .nii.gz": (raw("scan.nii.gz", bytes), "cut short"),
    "gzip of nothing": (raw("scan.nii.gz", lambda: gzip.compress(b"")), "not a NIfTI"),
    "text": (raw("scan.nii", lambda: b"x" * 1000), "not a NIfTI"),
    "text, .nii.gz": (raw("scan.nii.gz", lambda: b"x" * 1000), "damaged"),
    "not compressed, cut": (raw("scan.nii.gz", lambda: content()[:-1]), "cut short, 6 x 5 x 4"),
    "not compressed, a lie": (raw("scan.nii.gz", lambda: content(dim=dims(512, 512, 100))), "cut short, 512 x 512"),
    "not compressed, more": (raw("scan.nii.gz", lambda: content(extra=bytes(60))), "more voxels"),
    "compressed, .nii, cut": (raw("scan.nii", lambda: gzip.compress(content())[:-60]), "cut short"),
    "compressed, .nii, a lie": (raw("scan.nii", tiny_lie), "cut short"),
    "compressed, .nii, a bomb": (raw("scan.nii", lambda: gzip.compress(content(extra=bytes(2**24)))), "more voxels"),
    "compressed twice": (raw("scan.nii.gz", lambda: gzip.compress(gzip.compress(content()))), "not a NIfTI"),
    "DICOM": (raw("scan.dcm", lambda: DICOM), r"is a DICOM file, .*: dcm2niix -z y -o OUT /"),
    "DICOM, .nii.gz": (raw("scan.nii.gz", lambda: DICOM), r"is a DICOM file, .*: dcm2niix -z y -o OUT /"),
    "DICOM without a suffix": (raw("IM0001", lambda: DICOM), r"is a DICOM file, .*: dcm2niix -z y -o OUT /"),
    "a folder of DICOM": (lambda folder: {"scan": series(folder / "a b")}, r"dcm2niix -z y -o OUT '/.*/a b'$"),
    "a folder of other scans": (
        lambda folder: {"scan": foreign(folder / "scans")},
        r"are no NIfTI files \('a\.nrrd'\); convert",
    ),
    "another format": (raw("scan.mha", lambda: b"ObjectType = Image"), "not named like a NIfTI file; convert it to"),
    "gzip cut in the voxels": (raw("scan.nii.gz", lambda: gzip.compress(content())[:-60]), "cut short"),
    "gzip cut in the header": (raw("scan.nii.gz", lambda: gzip.compress(content())[:40]), "cut short"),
    "gzip without its checksum": (raw("scan.nii.gz", lambda: gzip.compress(content())[:-8]), "cut short"),
    "wrong checksum": (raw("scan.nii.gz", lambda: changed(gzip.compress(content()), -8, b"\0\0")), "damaged"),
    "wrong length": (raw("scan.nii.gz", lambda: gzip.compress(content())[:-4] + b"\0\0\0\1"), "damaged"),
    "damaged voxels": (raw("scan.nii.gz", lambda: changed(gzip.compress(content()), 200, b"\xff" * 9)), "damaged"),
    "rubbish after the gzip": (raw("scan.nii.gz", lambda: gzip.compress(content()) + b"rubbish"), "damaged"),
    "header only": (raw("scan.nii", lambda: content()[:352]), "cut short"),
    "half a header": (raw("scan.nii", lambda: content()[:200]), "not a NIfTI"),
    "four bytes": (raw("scan.nii", lambda: content()[:4]), "not a NIfTI"),
    "voxels missing": (raw("scan.nii", lambda: content()[:-1]), "cut short"),
    "voxels missing, .nii.gz": (raw("scan.nii.gz", lambda: gzip.compress(content()[:-1])), "cut short"),
    "one slice too many": (raw("scan.nii", lambda: content(extra=bytes(60))), "more voxels"),
    "one slice too many, .nii.gz": (raw("scan.nii.gz", lambda: gzip.compress(content(extra=bytes(60)))), "more voxels"),
    "a bomb in the header's extension": (
        raw("scan.nii.gz", lambda: gzip.compress(content(vox_offset=15 * 2**20)[:352] + bytes(15 * 2**20), 9)),
        "more voxels",
    ),
    "a bomb of many members": (
        raw("scan.nii.gz", lambda: gzip.compress(content()) + gzip.compress(bytes(2**24), 9) * 20),
        "more voxels",
    ),
    "64 MiB of nothing behind the voxels": (lambda folder: {"scan": sparse_file(folder / "scan.nii")}, "more voxels"),
    "a bomb": (raw("scan.nii.gz", lambda: gzip.compress(content(extra=bytes(20_000_000)))), "more voxels"),
    "62 bytes that claim 512x512x100": (raw("scan.nii.gz", tiny_lie), "cut short"),
    "gzip too small for its claim": (scan("scan.nii.gz", NUMBERS.repeat(9, 0), dim=dims(512, 512, 100)), "header lies"),
    "10^12 voxels": (scan("scan.nii", dim=BILLIONS), "more than any CT"),
    "10^12 voxels, .nii.gz": (scan(dim=BILLIONS), "more than any CT"),
    "sizes whose product overflows": (scan(dim=dims(*[32767] * 3)), "more than any CT"),
    "negative size": (scan(dim=dims(6, -5, 4)), "-5"),
    "empty": (scan(dim=dims(6, 0, 4)), "empty"),
    "no dimensions": (scan(dim=[0] * 8), "0 dimensions"),
    "nine dimensions": (scan(dim=[9] + [1] * 7), "9 dimensions"),
    "2D": (scan(dim=dims(6, 5)), "2 dimensions"),
    "4D": (scan(dim=dims(6, 5, 2, 2)), "4 dimensions"),
    "complex": (scan("scan.nii.gz", np.zeros((3, 3, 3), np.complex64)), "complex"),
    "RGB": (scan(datatype=128, bitpix=24), "RGB"),
    "unknown type": (scan(datatype=99), "unknown"),
    "type and bits differ": (scan(bitpix=8), "bits per voxel"),
    "infinite slope": (scan(scl_slope=np.inf), "scl_slope"),
    "NaN intercept": (scan(scl_inter=np.nan), "scl_inter"),
    "infinite intercept": (scan(scl_inter=-np.inf), "scl_inter"),
    "NaN voxel": (scan("scan.nii.gz", with_voxel(np.nan)), r"\(1, 2, 0\)"),
    "infinite voxel": (scan("scan.nii.gz", with_voxel(np.inf)), r"\(1, 2, 0\)"),
    "infinite after scaling": (scan("scan.nii.gz", np.full((2, 2, 2), 1e300), scl_slope=1e30), "infinite voxel"),
    "NaN affine": (scan(srow_x=[np.nan] * 4), "affine"),
    "infinite affine": (scan(srow_y=[0, 1, 0, np.inf]), "affine"),
    "unknown unit of length": (scan("scan.nii.gz", None, xyzt_units=5), "unit"),
    "singular affine": (scan("scan.nii.gz", None, affine(a00=0.75, a10=0.75, a01=1, a11=1)), "inverted"),
    "no voxel size": (scan("scan.nii.gz", None, affine(a22=0)), "2.5|x 0 mm"),
    "voxels of a kilometre": (scan("scan.nii.gz", None, affine(a22=1e6)), "mm"),
    "NaN voxel size": (scan(sform_code=0, pixdim=[1, np.nan, 1, 1, 0, 0, 0, 0]), "affine"),
    "NaN quaternion": (scan(sform_code=0, qform_code=1, quatern_b=np.nan), "affine"),
    "no quaternion": (scan(sform_code=0, qform_code=1, quatern_b=2), "orientation"),
    "voxel size of 0": (scan(sform_code=0, qform_code=1, pixdim=[1, 0, 1, 1, 0, 0, 0, 0]), "voxels of 0 x 1 x 1 mm"),
    "voxels in the header": (scan(vox_offset=100), "begin at byte 100"),
    "voxels at half a byte": (scan(vox_offset=352.5), "begin at byte"),
    "voxels at NaN": (scan(vox_offset=np.nan), "begin at byte"),
    "voxels far away": (scan(vox_offset=1e9), "begin at byte"),
    "voxels behind the end": (scan("scan.nii", vox_offset=4096), "cut short"),
    "half of a pair": (scan(magic=b"ni1"), ".hdr/.img"),
    "no magic": (scan(magic=b"abc"), "not a NIfTI"),
}


def make_folder(path):
    path.mkdir()
    return path


def sparse_file(path):
    """A header of 120 voxels, and 64 MiB that take no room."""
    path.write_bytes(content())
    os.truncate(path, 2**26)
    return path


def make_pipe(path):
    os.mkfifo(path)
    return path


def model(**changes):
    """A case whose model breaks the contract."""
    return lambda folder: {"model": write_threshold_model(folder / "m.onnx", **changes)}


def model_bytes(make):
    def build(folder):
        good = write_threshold_model(folder / "good.onnx").read_bytes()
        (folder / "m.onnx").write_bytes(make(good))
        return {"model": folder / "m.onnx"}

    return build


def card(text=None, **changes):
    wanted = json.loads(threshold_card().to_json()) | changes
    fields = {key: value for key, value in wanted.items() if value is not None or key not in changes}
    return model(metadata=[(METADATA_KEY, json.dumps(fields) if text is None else text)])


def wrong_k():
    nodes, output = with_probabilities(3)
    return model(nodes=threshold_nodes() + nodes, outputs=[labels_output(), output])


def fails_at_run():
    """The graph can be loaded but reshapes every batch to a shape that does not fit."""
    shape = helper.make_tensor("s", TensorProto.INT64, [4], [1, 1, 7, 7])
    nodes = [helper.make_node("Reshape", ["hu", "s"], ["reshaped"])]
    tail = threshold_nodes()
    for node in tail:
        node.input[:] = ["reshaped" if name == "hu" else name for name in node.input]
    return model(nodes=nodes + tail, initializers=[shape])


def wrong_size():
    """The graph returns another size than it was given."""
    pads = helper.make_tensor("p", TensorProto.INT64, [6], [0, 0, 0, 0, 1, 1])
    nodes = threshold_nodes()
    nodes[-1].output[0] = "small"
    return model(nodes=[*nodes, helper.make_node("Pad", ["small", "p"], ["labels"])], initializers=[pads])


def with_node(kind, inputs=("hu",), outputs=("z",), domain="", initializers=(), **attributes):
    """The model with one more node, whose result is not used."""
    node = helper.make_node(kind, list(inputs), list(outputs), domain=domain, **attributes)
    return model(nodes=[*threshold_nodes(), node], initializers=initializers)


def with_tensor(change, dims=(2, 2)):
    """The model with an initializer that ``change`` has spoiled."""
    tensor = helper.make_tensor("spoiled", TensorProto.FLOAT, dims, np.zeros(dims, np.float32).tobytes(), raw=True)
    change(tensor)
    return model(initializers=[tensor])


def changed_model(change):
    """The model after ``change`` has edited its parsed form."""

    def edit(good):
        proto = onnx_pb.ModelProto.FromString(good)
        change(proto)
        return proto.SerializeToString()

    return model_bytes(edit)


def numbers(name, *values):
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def external_sparse():
    indices = numbers("i", 0)
    return onnx_pb.SparseTensorProto(values=external_tensor(), indices=indices, dims=[1])


def graph_of(*tensors):
    return helper.make_graph([], "inner", [], [], list(tensors))


def training(proto):
    proto.training_info.add().algorithm.CopyFrom(graph_of())


def function(proto):
    proto.functions.add().name = "mine"


def external_function(proto):
    node = helper.make_node("Constant", [], ["c"], value=external_tensor())
    proto.functions.add(name="mine").node.append(node)


def many_nodes(proto):
    node = proto.graph.node[0]
    proto.graph.node.extend([node] * 50_000)


def unknown_operator(domain):
    nodes = [*threshold_nodes(), helper.make_node("Undefined", ["x"], ["y"], domain=domain)]
    return model(nodes=nodes, domains=[domain] if domain else [])


MODELS = {
    "missing": (lambda folder: {"model": folder / "none.onnx"}, "no such file"),
    "a folder": (lambda folder: {"model": make_folder(folder / "m.onnx")}, "folder"),
    "nothing in it": (model_bytes(lambda good: b""), "does not begin"),
    "text": (model_bytes(lambda good: b"not a model at all"), "not an ONNX file"),
    "a scan": (model_bytes(lambda good: content()), "not an ONNX file"),
    "cut short": (model_bytes(lambda good: good[: len(good) // 2]), "not an ONNX file"),
    "damaged": (model_bytes(lambda good: changed(good, 40, b"\xff" * 8)), "not an ONNX file|cannot load"),
    "only metadata": (model_bytes(lambda good: good[good.index(b"smile_fast") - 6 :]), "ONNX file"),
    "foreign": (model(metadata=[("producer", "someone")]), "without a model card"),
    "two cards": (model(metadata=[(METADATA_KEY, threshold_card().to_json())] * 2), "without a model card"),
    "card is no JSON": (card("organs: liver"), "cannot be used"),
    "card is a list": (card("[]"), "object"),
    "another schema": (card(schema=4), "schema is 4"),
    "an older schema": (card(schema=1), "schema is 1, .*; export it again"),
    "no schema": (card(schema=None), "schema is None"),
    "no organs": (card(organs=[]), "organs"),
    "organ twice": (card(organs=["liver", "liver"]), "organs"),
    "127 organs": (card(organs=[str(n) for n in range(127)]), "organs"),
    "field missing": (card(window=None), "window is missing"),
    "field unknown": (card(crop="body"), "crop is unknown"),
    "even channels": (card(channels=2), "channels"),
    "another orientation": (card(orientation="RAS"), "orientation"),
    "window upside down": (card(window=[240, -160]), "window"),
    "threshold of 2": (card(threshold=2), "threshold"),
    "unknown head": (card(head="relu"), "head"),
    "card for 3 channels": (card(channels=3), "takes 1 channels"),
    "wrong K": (wrong_k(), "segments 3 organs"),
    "label without an organ": (card(organs=["bone"]), "contradicts"),
    "float input": (model(inputs=[hu_input(dtype=TensorProto.FLOAT)]), "int16 input"),
    "another input": (model(inputs=[hu_input(), hu_input(name="more")]), "int16 input"),
    "no labels": (model(outputs=[labels_output(TensorProto.INT32, name="sum")]), "output labels"),
    "another output": (
        model(outputs=[labels_output(), labels_output(TensorProto.INT32, name="sum")]),
        "unknown output",
    ),
    "one size": (model(inputs=[hu_input(dims=("N", 64, 64))]), "only slices of 64 x 64"),
    "external data": (model(initializers=[external_tensor()]), "other files"),
    "unknown operator": (unknown_operator(""), "operator 'Undefined', which"),
    "foreign operator": (unknown_operator("com.example"), "domain 'com.example'"),
    "external data in an attribute": (with_node("Constant", (), value=external_tensor()), "other files"),
    "external data in a list of tensors": (with_node("Constant", (), many=[external_tensor()]), "other files"),
    "external data in a sparse attribute": (with_node("Constant", (), sparse_value=external_sparse()), "other files"),
    "external data in a subgraph": (with_node("If", body=graph_of(external_tensor())), "other files"),
    "external data in a list of subgraphs": (with_node("If", bodies=[graph_of(external_tensor())]), "other files"),
    "external data in a sparse initializer": (
        changed_model(lambda proto: proto.graph.sparse_initializer.append(external_sparse())),
        "other files",
    ),
    "external data in a function": (changed_model(external_function), "other files"),
    "external data by location only": (with_tensor(lambda t: setattr(t, "data_location", 1)), "other files"),
    "a sparse tensor": (
        changed_model(
            lambda proto: proto.graph.sparse_initializer.append(
                onnx_pb.SparseTensorProto(
                    values=helper.make_tensor("v", 1, [1], [1.0]), indices=numbers("i", 0), dims=[2**40]
                )
            )
        ),
        "sparse tensors",
    ),
    "a function": (changed_model(function), "functions of its own"),
    "training": (changed_model(training), "training"),
    "foreign metadata beside the card": (
        model(metadata=[(METADATA_KEY, threshold_card().to_json()), ("script", "rm -rf")]),
        "foreign metadata under the key 'script'",
    ),
    "a loop": (with_node("Loop", body=graph_of()), "operator 'Loop'"),
    "a condition": (with_node("If", then_branch=graph_of(), else_branch=graph_of()), "operator 'If'"),
    "randomness": (with_node("RandomNormal", (), shape=[1]), "operator 'RandomNormal'"),
    "strings": (with_node("StringNormalizer"), "operator 'StringNormalizer'"),
    "a sequence": (with_node("SequenceConstruct"), "operator 'SequenceConstruct'"),
    "a contributed operator": (with_node("FusedConv", domain="com.microsoft"), "'FusedConv' of the domain"),
    "a domain without a node": (model(domains=["ai.onnx.ml"]), "unknown domain 'ai.onnx.ml'"),
    "a tensor of 10^12 values": (with_tensor(lambda t: t.dims.__setitem__(0, 10**12)), "claims 2000000000000 values"),
    "a tensor of negative size": (with_tensor(lambda t: t.dims.__setitem__(0, -2)), "damaged dimensions"),
    "a tensor without values": (with_tensor(lambda t: t.ClearField("raw_data")), "claims 4 values and holds 0"),
    "a tensor with twice its values": (with_tensor(lambda t: t.float_data.extend([0.0] * 4)), "claims 4 values"),
    "a tensor of 100 dimensions": (with_tensor(lambda t: t.dims.extend([1] * 100)), "damaged dimensions"),
    "a tensor of no type": (with_tensor(lambda t: t.ClearField("data_type")), "values of type 0"),
    "a tensor of an unknown type": (with_tensor(lambda t: setattr(t, "data_type", 77)), "values of type 77"),
    "a tensor of strings": (with_tensor(lambda t: setattr(t, "data_type", 8)), "values of type 8"),
    "a tensor cut short": (with_tensor(lambda t: setattr(t, "raw_data", bytes(7))), "holds 7 bytes"),
    "an operator that makes zeros": (
        with_node("ConstantOfShape", ("big",), initializers=[numbers("big", 10**5, 10**5, 10**2)]),
        "operator 'ConstantOfShape', which is not allowed",
    ),
    "an operator that repeats": (
        with_node("Tile", ("hu", "t"), initializers=[numbers("t", 1, 1, 2**20, 2**20)]),
        "'Tile'",
    ),
    "50,000 nodes": (changed_model(many_nodes), "more than any network"),
    "an empty graph with a long name": (
        model_bytes(lambda good: b"\x08\x0a\x12\xff\xff\xff\x7f" + good),
        "longer than",
    ),
    "zeros": (model_bytes(lambda good: bytes(10**6)), "does not begin"),
    "a card of a megabyte": (card("[" * 2**21), "characters"),
    "a body of text": (card(body="yes"), "body"),
    "a body of air": (card(body={"threshold_hu": -5000, "margin_mm": 5}), "body.threshold_hu"),
    "fails at run": (fails_at_run(), "fails on slices"),
    "another size": (wrong_size(), "contradicts"),
    **HOSTILE,
}


def output(name):
    return lambda folder: {"out": folder / "out" / name}


def prepared(name, make):
    """A case that writes to ``name``, where ``make`` has put something else."""

    def build(folder):
        make(folder / "out" / name)
        return {"out": folder / "out" / name}

    return build


def onto_scan(make):
    def build(folder):
        good = write(folder / "out" / "scan.nii.gz")
        make(good, folder / "out" / "other.nii.gz")
        return {"scan": good, "out": folder / "out" / "other.nii.gz"}

    return build


OUTPUTS = {
    "a folder": (prepared("labels.nii.gz", make_folder), "folder"),
    "in no folder": (output("none/labels.nii.gz"), "does not exist"),
    "below a file": (lambda folder: {"out": write(folder / "out" / "a.nii") / "labels.nii.gz"}, "does not exist"),
    "a full device": (prepared("labels.nii.gz", lambda path: path.symlink_to("/dev/full")), "device"),
    "a pipe": (prepared("labels.nii.gz", make_pipe), "pipe"),
    "a link into no folder": (prepared("labels.nii.gz", lambda path: path.symlink_to("none/a.nii.gz")), "no such file"),
    "a name too long": (output("a" * 250 + ".nii.gz"), "too long"),
    "another suffix": (output("labels.png"), "named like a NIfTI"),
    "the scan": (lambda folder: {"scan": (good := write(folder / "s.nii.gz")), "out": good}, "overwrite"),
    "a link to the scan": (onto_scan(lambda good, other: other.symlink_to(good)), "overwrite"),
    "a hard link to the scan": (onto_scan(lambda good, other: other.hardlink_to(good)), "overwrite"),
    "the model": (lambda folder: {"model": (m := write_threshold_model(folder / "m.nii")), "out": m}, "overwrite"),
    "both in one": (
        lambda folder: {"more": ["--organ-table", str(folder / "out" / "labels.nii.gz")]},
        "give one that ends in .txt",
    ),
    "another patient's scan": (prepared("labels.nii.gz", write), "would replace what may be a scan"),
    "a scan in four dimensions": (
        prepared("labels.nii.gz", lambda path: write(path, np.zeros((3, 3, 3, 2), np.int16))),
        "would replace what may be a scan",
    ),
    "table over scan": (
        lambda folder: {"scan": (good := write(folder / "s.nii.gz")), "more": ["--organ-table", str(good)]},
        "give one that ends in .txt",
    ),
    "table in no folder": (
        lambda folder: {"more": ["--organ-table", str(folder / "none" / "a.json")]},
        "does not exist",
    ),
}

OPTIONS = {
    "no threads": (lambda folder: {"more": ["--threads", "0"]}, "threads"),
    "negative batch": (lambda folder: {"more": ["--batch", "-1"]}, "batch"),
}

CASES = {
    f"{group}: {name}": case
    for group, cases in {"scan": SCANS, "model": MODELS, "output": OUTPUTS, "option": OPTIONS}.items()
    for name, case in cases.items()
}


def files(folder):
    """Every path below ``folder`` with its content."""
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(("build", "why"), CASES.values(), ids=CASES)
def test_bad_input_is_refused(tmp_path, threshold_model, capsys, build, why):
    (tmp_path / "out").mkdir()
    case = {"model": threshold_model, "out": tmp_path / "out" / "labels.nii.gz", "more": []} | build(tmp_path)
    case.setdefault("scan", tmp_path / "good.nii.gz")
    write(tmp_path / "good.nii.gz")
    before = files(tmp_path)
    status = main([*map(str, [case["model"], case["scan"], "-o", case["out"]]), *case["more"]])
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if not line.startswith("predict: ")]
    assert status == 2
    assert len(lines) == 1, printed.err
    assert re.fullmatch(r"error: [^:]+: [a-z10\-].*[^.]", lines[0]), lines[0]  # subject: what is wrong; what to do
    assert re.search(why, lines[0]), lines[0]
    assert printed.out == ""
    assert files(tmp_path) == before


def test_the_lie_is_as_small_as_it_should_be():
    assert len(tiny_lie()) < 200
    assert struct.unpack("<i", gzip.decompress(tiny_lie())[:4]) == (348,)


def test_there_are_enough_of_them():
    assert len(SCANS) + len(MODELS) >= 100


# These show only when the model runs: there, a session exists and has to.
AT_RUN = {"fails at run", "another size", "label without an organ"}
# These are seen by looking at the session's own inputs and outputs.
BY_CONTRACT = {
    "wrong K",
    "float input",
    "another input",
    "no labels",
    "another output",
    "one size",
    "card for 3 channels",
}
# A damaged byte may leave a file that only onnxruntime itself refuses.
BY_ONNXRUNTIME = {"damaged"}


@pytest.mark.parametrize("name", sorted(MODELS.keys() - AT_RUN - BY_CONTRACT - BY_ONNXRUNTIME))
def test_a_model_is_refused_before_a_session_is_made(tmp_path, monkeypatch, name):
    def session(*args, **kwargs):
        raise AssertionError("a session was made")

    path = MODELS[name][0](tmp_path)["model"]
    monkeypatch.setattr(ort, "InferenceSession", session)
    with pytest.raises(InputError):
        Model(path)


MEASURE = """
import json, sys
sys.path.insert(0, sys.argv[2])
from cpu_time import seconds_of, shortest
from smile_runtime.errors import InputError
from smile_runtime.model.exported import Model
from smile_runtime.io.nifti import read_image

def memory(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) * 1024

def refuse(kind, path):
    try:
        (Model if kind == "model" else read_image)(path)
    except InputError:
        return True
    return False

cases = json.load(open(sys.argv[1]))
for kind, path, _ in (cases[0], cases[-1]):
    refuse(kind, path)  # loads what is loaded once and for all
found = {}
for kind, path, name in cases:
    before = memory("VmRSS")
    refused = refuse(kind, path)
    grown = memory("VmHWM") - before
    found[name] = [refused, shortest(lambda: seconds_of(refuse, kind, path), 0.1), grown]
print(json.dumps(found))
"""


def test_each_is_refused_within_100_ms_and_50_mb(tmp_path):
    """In one process; the peak of memory only grows, so a case is blamed for the peaks of those before it too."""
    cases = []
    for kind, group in (("scan", SCANS), ("model", MODELS)):
        for number, (name, (build, _)) in enumerate(group.items()):
            if kind == "model" and name in AT_RUN:
                continue
            folder = tmp_path / kind / str(number)
            folder.mkdir(parents=True)
            cases.append((kind, str(build(folder)[kind]), f"{kind}: {name}"))
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "cases.json"), os.path.dirname(__file__)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == len(cases) >= 100
    assert [name for name, (refused, _, _) in found.items() if not refused] == []
    assert {name: seconds for name, (_, seconds, _) in found.items() if seconds > 0.1} == {}
    assert {name: grown for name, (_, _, grown) in found.items() if grown > 50e6} == {}
