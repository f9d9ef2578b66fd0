import base64
import json
import re
import shutil
from contextlib import ExitStack
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from smile_fast.cli.main import main
from smile_fast.evaluation import evaluate_run, score_case, summarise, write_evaluation
from smile_fast.report.builder import build_report, write_report
from smile_fast.report.collect import collect, open_runs
from smile_fast.report.figures import dice_chart, training_chart
from smile_fast.report.gallery import Painter, choose_cases, prediction_rows, pseudo_rows
from smile_fast.report.palette import organ_colours
from smile_fast.report.pictures import frame_of
from smile_fast.supervision import State
from smile_fast.training.inference import predict_labels
from smile_fast.training.run import Run
from smile_runtime.errors import InputError
from smile_runtime.label_map import PSEUDO_BIT
from tests.report.test_report_pictures import picture
from tests.runs import ORGANS, SHAPE, add_metrics, add_round, ct, make_run, make_store, truth
from tests.tolerances import FILLED_AREA

WINDOW = (-160.0, 240.0)
COLOURS = organ_colours(ORGANS)


def opened(paths):
    with ExitStack() as held:
        return open_runs(paths, None, held)


class Page(HTMLParser):
    """Every tag with its attributes, the text by the section that it stands in, and what is left open."""

    VOID_TAGS = ("meta", "link", "img", "br")

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open, self.section = [], {}, [], "header"
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID_TAGS:
            self.open.append(tag)
        if tag == "section" and "id" in dict(attrs):
            self.section = dict(attrs)["id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text[self.section] = " ".join([self.text.get(self.section, ""), *data.split()])

    def attributes(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def svg(uri):
    head, content = uri.split(",")
    assert head == "data:image/svg+xml;base64"
    return ElementTree.fromstring(base64.b64decode(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def store(folder):
    states = {
        ("train_1", "liver"): State.HIDDEN,
        ("train_1", "pancreas"): State.HIDDEN,
        ("train_2", "pancreas"): State.MISSING,
        ("test_1", "pancreas"): State.MISSING,
    }
    labels = {case: truth() for case in ("train_0", "train_1", "train_2", "test_0", "test_1", "test_2")}
    labels["test_1"] = labels["train_2"] = np.where(truth() == 2, 0, truth()).astype(np.uint8)
    return make_store(folder / "cohort", labels, states)


def pseudo_labels():
    """What a round adds to train_1: the front half of the liver, and eight voxels of which four are pancreas."""
    overlay = np.zeros(SHAPE, np.uint8)
    overlay[1:5, 8:16, 6:22] = PSEUDO_BIT | 1
    overlay[3, 26:28, 24:28] = PSEUDO_BIT | 2
    return overlay


@pytest.fixture(scope="module")
def smiler(folder, store):
    """A run with everything: losses, validation, two rounds, scores."""
    run = make_run(folder / "smiler run", store, method="smiler", channels=3, clip_norm=1.5)
    add_metrics(run)
    nothing = np.zeros(SHAPE, np.uint8)
    add_round(run, 1, {"train_1": nothing, "train_2": nothing}, gamma=0.33)
    unchecked = nothing.copy()
    unchecked[0, 0, :4] = PSEUDO_BIT | 2  # the pancreas of train_2 is not drawn: nothing to check it against
    add_round(run, 2, {"train_1": pseudo_labels(), "train_2": unchecked}, gamma=0.66)
    write_evaluation(evaluate_run(run), run.path)
    return run


@pytest.fixture(scope="module")
def baseline(folder, store):
    run = make_run(folder / "baseline", store, method="baseline", seed=1)
    add_metrics(run, validation=False)
    write_evaluation(evaluate_run(run, nsd_tolerance_mm=None), run.path)
    return run


@pytest.fixture(scope="module")
def bare(folder, store):
    """A run that only exists: no weights, no metrics, nothing."""
    return make_run(folder / "bare", store, trained=False)


@pytest.fixture(scope="module")
def html(smiler, baseline):
    return build_report(opened([smiler.path, baseline.path]))


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_page_is_well_formed_and_needs_nothing_else(html, page):
    assert page.open == []
    used = [attrs.get(name) for _, attrs in page.tags for name in ("src", "href", "poster", "data", "srcset")]
    assert {link[0] if link.startswith("#") else link.split(",")[0] for link in used if link} == {
        "#",
        "data:",
        "data:image/png;base64",
        "data:image/svg+xml;base64",
    }
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert "@import" not in html
    assert "url(" not in html
    targets = {attrs["href"][1:] for attrs in page.attributes("a")}
    assert targets == {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert all(attrs["alt"] for attrs in page.attributes("img"))


def test_page_tells_what_was_run(page):
    for text in ("SMILEr", "baseline (softmax, missing = background)", "3 train, 0 validation, 3 test", "cohort"):
        assert text in page.text["run"]
    assert "Comparison of 2 runs" in page.text["header"]
    assert "0.33 (1 of 3)" in page.text["run"]  # alpha of the liver
    assert "0.67 (2 of 3)" in page.text["run"]  # alpha of the pancreas
    assert "2 rounds, γ max 0.66, per volume" in page.text["run"]
    assert page.text["run"].count("seed 0, gradient clipped to 1.5") == page.text["run"].count("gradient clipped") == 1


def test_page_audits_the_training_labels_once_for_both_runs(page):
    assert page.text["audit"].count("Labels of smiler run, baseline") == 1
    liver = "liver: 33% of the annotations are missing (1 of 3 cases, 33% of the slices, 33% of the voxels)"
    assert liver in page.text["audit"]
    assert "α, slices" in page.text["audit"]


def test_page_compares_the_scores(page, smiler, baseline):
    text = page.text["scores"]
    for run in (smiler, baseline):
        content = json.loads((run.path / "evaluation.json").read_text())
        assert f"{content['dice']:.3f}" in text
        for row in content["organs"]:
            assert f"{row['dice']['mean']:.3f} ± {row['dice']['std']:.3f}" in text
    assert "NSD at a tolerance of 3 mm" in text
    assert "not drawn" in text
    assert "both empty" not in text  # it did not occur
    best = [attrs for attrs in page.attributes("td") if attrs.get("class") == "top"]
    assert best == []  # three cases are too few to call a run better
    assert "over the 5 pairs that all runs have scored; the Dice over the 5 of them" in text


def test_page_shows_every_split_that_was_scored(smiler, baseline, tmp_path):
    """One run has test and train, the other train and validation: the pictures and cards are of the test cases."""
    runs = [shutil.copytree(run.path, tmp_path / run.path.name) for run in (smiler, baseline)]
    (runs[1] / "evaluation.json").unlink()
    train = [evaluate_run(run, split="train") for run in (smiler, baseline)]
    for run, evaluation in zip(runs, train, strict=True):
        write_evaluation(evaluation, run)
    write_evaluation(replace(train[1], split="validation", cases=train[1].cases[:1]), runs[1])
    html = build_report(opened(runs))
    page = Page(html)
    text = page.text["scores"]
    places = [text.index(f"The {split} cases") for split in ("test", "validation", "train")]
    assert places == sorted(places)
    test, validation, of_train = text[places[0] : places[1]], text[places[1] : places[2]], text[places[2] :]
    assert "Not scored on them: baseline" in test
    assert "Not scored on them: smiler run" in validation
    assert "Not scored" not in of_train
    assert f"{train[0].dice:.3f}" in of_train
    assert f"{train[1].dice:.3f}" in of_train
    assert "cannot be compared" not in text
    assert re.findall(r'class="name">([^<]*)<', html) == ["smiler run"]  # the card
    assert "3 test cases" in html
    assert "Of test cases, chosen by their scores" in page.text["pictures"]
    assert "test_0" in page.text["pictures"]
    elsewhere = tuple(replace(pair, case=f"other {pair.case}") for pair in train[0].pairs)
    write_evaluation(replace(train[0], pairs=elsewhere), runs[0])
    assert "cannot be compared" in Page(build_report(opened(runs))).text["scores"]


def test_page_counts_the_rounds_and_their_precision(page):
    text = page.text["rounds"]
    # Round 2. Liver: 4 x 8 x 16 voxels, all right, half of the hidden truth. Pancreas: 4 of the 8 that can be
    # checked are right, of 2 x 6 x 14 hidden ones.
    assert "2, γ = 0.66 liver 1 1 024 512 512 100.0% 50.0%" in text
    assert "pancreas 2 24 12 12 50.0% 2.4%" in text
    assert "1, γ = 0.33 liver 1 0 0 0 – 0.0%" in text


def test_page_says_why_curves_are_missing(page):
    assert "smiler run, baseline: no validation cases were set aside" in page.text["training"]


def test_page_of_a_bare_run_says_what_is_absent(bare):
    page = Page(build_report(opened([bare.path])))
    assert page.open == []
    assert "No iteration of this run was recorded" in page.text["training"]
    assert "This run has no relabelling round" in page.text["rounds"]
    assert "Not evaluated: bare" in page.text["scores"]
    assert "There are no pseudo-labels" in page.text["pictures"]
    assert "Case: test_0" in page.text["pictures"]
    assert "liver: 33% of the annotations" in page.text["audit"]
    assert len(page.attributes("img")) == 3 * 2  # CT and truth of three cases, no prediction


def test_runs_on_other_labels_are_audited_apart(bare, tmp_path):
    without = np.where(truth() == 2, 0, truth()).astype(np.uint8)
    states = {("train_0", "pancreas"): State.ABSENT, ("train_1", "pancreas"): State.MISSING}
    other = make_store(tmp_path / "other", {"train_0": without, "train_1": without, "train_2": truth()}, states)
    page = Page(build_report(opened([bare.path, make_run(tmp_path / "second", other, trained=False).path])))
    assert "Labels of bare" in page.text["audit"]
    assert "Labels of second" in page.text["audit"]
    assert "α, pancreas 0.67 (2 of 3) 0.50 (1 of 2)" in page.text["run"]  # absent cases do not count
    assert "None of these runs has a relabelling round" in page.text["rounds"]


def test_names_are_escaped(tmp_path):
    organs = ("<b>liver</b>", 'spleen & "x"')
    store = make_store(tmp_path / "<i>cohort", {"train_0": truth(), "test_<u>": truth()}, organs=organs)
    run = make_run(tmp_path / "run<script>alert(1)", store)
    add_metrics(run)
    write_evaluation(evaluate_run(run), run.path)
    html = build_report(opened([run.path]))
    page = Page(html)
    for harmful in ("<script", "<u>", "<i>cohort", "<b>liver"):
        assert harmful not in html
    assert "&lt;b&gt;liver&lt;/b&gt;" in html
    assert page.open == []


def test_command_writes_the_page_and_replaces_it(smiler, bare, tmp_path, capsys):
    assert main(["report", str(bare.path)]) == 0
    assert str(bare.path / "report.html") in capsys.readouterr().out
    target = tmp_path / "page.html"
    target.write_text("old")
    assert main(["report", str(bare.path), "-o", str(target)]) == 0
    assert target.read_text().startswith("<!DOCTYPE html>")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_bad_input_is_one_sentence_and_leaves_nothing(smiler, tmp_path, capsys):
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 2
    assert ": not a run folder" in capsys.readouterr().err
    assert main(["report", str(smiler.path), str(smiler.path), "-o", str(tmp_path / "page.html")]) == 2
    assert ": given twice; name every run once" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="does not exist"):
        write_report([smiler.path], tmp_path / "none" / "page.html")


@pytest.mark.parametrize(
    "target",
    [
        "smiler run/config.json",
        "smiler run/metrics.jsonl",
        "smiler run/evaluation.csv",
        "smiler run/rounds/2/round.json",
        "smiler run/rounds/1/train_1-*.b2nd",
        "cohort/index.json",
        "cohort/cases/test_0/image-*.b2nd",
        "baseline/model.safetensors",
    ],
)
def test_a_page_never_replaces_what_it_is_made_of(folder, smiler, baseline, capsys, target):
    (file,) = folder.glob(target)
    before = file.read_bytes()
    assert main(["report", str(baseline.path), str(smiler.path), "-o", str(file)]) == 2
    assert "would overwrite the input" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_runs_stand_in_the_given_order_everywhere(smiler, baseline):
    """Neither the alphabet nor the scores sort them."""
    paths = {"smiler run": smiler.path, "baseline": baseline.path}
    for names in (list(paths), list(paths)[::-1]):
        html = build_report(opened([paths[name] for name in names]))
        page, pages = Page(html), {}
        for _, attrs in page.tags:
            for name in names:
                if f"prediction of {name}," in attrs.get("alt", ""):
                    pages.setdefault(name, len(pages))
        assert list(pages) == names
        assert f"smile-fast report: {', '.join(names)}</title>" in html
        assert f"Labels of {', '.join(names)}" in page.text["audit"]
        assert re.findall(r'class="name">([^<]*)<', html) == names  # the cards
        assert re.findall(r"<thead><tr><th></th><th>([^<]*)</th><th>([^<]*)</th>", html) == [tuple(names)]
        assert re.findall(r'<h3>([^<]*)</h3>\n<div class="wide"><img', html) == names  # the curves
        scores = html[html.index('<section id="scores"') :]
        assert re.findall(r'<td class="word">([^<]*)<', scores) == names * 3  # two organs and their mean
        assert re.findall(r"<h4>([a-z ]*)</h4>", html) == names  # the lowest Dice


def test_a_run_is_opened_and_its_network_loaded_once(smiler, baseline, monkeypatch):
    loaded = []
    load_model = Run.load_model
    monkeypatch.setattr(Run, "load_model", lambda run: loaded.append(run.path.name) or load_model(run))
    build_report(opened([smiler.path, baseline.path]))
    assert sorted(loaded) == ["baseline", "smiler run"]


def test_runs_of_the_same_name_are_distinguished(store, tmp_path):
    runs = [make_run(tmp_path / parent / "run", store, trained=False) for parent in ("a", "b")]
    assert [record.name for record in collect(opened([run.path for run in runs]))] == ["a/run", "b/run"]


def test_charts_are_the_same_bytes_again_and_have_the_organs_colours(smiler):
    record = collect(opened([smiler.path]))[0]
    chart = training_chart(record.curves, ORGANS, COLOURS)
    assert chart == training_chart(record.curves, ORGANS, COLOURS)
    for uri in (chart, dice_chart({"run": record.evaluation}, ORGANS, COLOURS)):
        drawing = ElementTree.tostring(svg(uri), encoding="unicode").lower()
        assert all(colour.lower() in drawing for colour in COLOURS.values())


def test_dice_chart_shows_organs_without_a_score(smiler):
    pairs = score_case("a", truth(), truth(), {"liver": State.ANNOTATED, "pancreas": State.MISSING}, ORGANS, (1, 1, 1))
    evaluation = summarise(pairs, ORGANS, split="test", nsd_tolerance_mm=3.0)
    assert svg(dice_chart({"one": evaluation, "two": evaluation}, ORGANS, COLOURS)) is not None


def test_cases_are_chosen_by_their_scores(smiler, baseline):
    records = collect(opened([smiler.path, baseline.path]))
    choices = choose_cases(records)
    dice = {}
    for record in records:
        for pair in record.evaluation.pairs:
            if pair.dice is not None:
                dice.setdefault(pair.case, []).append(pair.dice)
    ranked = sorted(dice, key=lambda case: -np.mean(dice[case]))
    assert [(choice.case, choice.why) for choice in choices[:3]] == list(
        zip(ranked, ("Best case", "Median case", "Worst case"), strict=True)
    )
    alone = replace(records[0].evaluation, pairs=records[0].evaluation.pairs[:2])
    assert choose_cases([replace(records[0], evaluation=alone)])[0].why == "Only case"
    worst = records[1].evaluation.worst[0]
    assert (choices[3].case, choices[3].organ) == (worst.case, worst.organ)


def test_a_shown_slice_is_predicted_as_in_its_volume(smiler):
    painter = Painter(collect(opened([smiler.path]))[0], COLOURS)
    volume = predict_labels(smiler.load_model(), painter.store.read_image("test_0"))
    assert len(np.unique(volume)) > 1
    for index in range(SHAPE[0]):
        np.testing.assert_array_equal(painter.predict("test_0", index), volume[index])


def test_prediction_pictures_show_every_run_beside_the_truth(smiler, baseline):
    records = collect(opened([smiler.path, baseline.path]))
    rows = prediction_rows(records, COLOURS)
    assert all([panel.title for panel in row.panels] == ["CT", "Truth", "smiler run", "baseline"] for row in rows)
    undrawn = next(row for row in rows if "test_1" in row.title)
    assert undrawn.panels[1].note == "not drawn: pancreas"
    assert re.fullmatch(r"Dice of the volume: liver \d\.\d\d", undrawn.panels[2].note)


def test_pseudo_labels_are_yellow_and_hidden_labels_stay_out_of_the_first_panel(smiler):
    row, other = pseudo_rows(collect(opened([smiler.path]))[0], COLOURS)
    assert (row.title, other.title) == ("smiler run: train_1", "smiler run: train_2")  # most voxels first
    seen, first, second = (picture(panel.picture) for panel in row.panels)
    assert (seen.max(axis=2) == seen.min(axis=2)).all()  # nothing was visible: a grey picture

    def yellow(shown):
        return (shown[..., 0] - shown[..., 2] > 60) & (shown[..., 1] - shown[..., 2] > 60)

    assert not yellow(first).any()
    frame = frame_of(ct(1)[3], (2.0, 1.0), panels=3)
    shown = (frame.rows.stop - frame.rows.start) * (frame.columns.stop - frame.columns.start)
    assert yellow(second).mean() == pytest.approx((8 * 16 + 8) / shown, **FILLED_AREA)  # outlines take some of it
    assert "520 pseudo-labelled voxels" in row.panels[2].note
