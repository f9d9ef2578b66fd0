"""The page of a sweep, and the numbers on it."""

import numpy as np
import pytest

from smile_fast.cli.main import main
from smile_fast.report.methods import preset_sentence
from smile_fast.report.sweep_curves import MEAN, read_sweep, what_to_see
from smile_fast.report.sweep_page import sweep_page
from smile_runtime.errors import InputError
from tests.report.test_report import Page

HEAD = "method,alpha,fold,organ,dice\n"


def write_sweep(folder, methods=("baseline", "smile", "smiler"), alphas=(0, 0.9), folds=3, skip=()):
    """The Dice falls with alpha, least for the last method; folds differ by a point, organs by six."""
    lines = [HEAD]
    for place, method in enumerate(methods):
        for alpha in alphas:
            for fold in range(folds):
                for number, organ in enumerate(("liver", "pancreas")):
                    dice = 0.9 - alpha * 0.6 / (place + 1) + 0.01 * fold - 0.06 * number
                    if (method, alpha, fold) not in skip:
                        lines.append(f"{method},{alpha},{fold},{organ},{dice:.4f}\n")
    folder.mkdir(exist_ok=True)
    (folder / "figure3.csv").write_text("".join(lines))
    return folder


def test_command_writes_the_page_of_a_sweep(tmp_path, capsys):
    folder = write_sweep(tmp_path / "trial")
    assert main(["report", "--sweep", str(folder), "-o", str(tmp_path / "page.html")]) == 0
    html = (tmp_path / "page.html").read_text()
    page = Page(html)
    assert page.open == []
    assert all(attrs["src"].startswith("data:") and attrs["alt"] for attrs in page.attributes("img"))
    assert {attrs["href"][1:] for attrs in page.attributes("a")} == {"reading", "curves", "table", "differences"}
    assert len(page.attributes("img")) == 3  # two organs and their mean
    assert "baseline 0.34, smile 0.61, smiler 0.70" in page.text["curves"]
    assert "smiler loses least, 18 points of Dice, and baseline most, 54" in page.text["curves"]
    assert "0.340 ± 0.010 0.33 to 0.35" in page.text["table"]
    assert "no p can be below 0.031" in page.text["differences"]
    assert "smiler against α = 0 α = 0.9 baseline +0.0 equal +36.0 p = 0.031" in page.text["differences"]
    assert preset_sentence("baseline") in page.text["reading"]
    assert "Unfinished" not in html


def test_an_unfinished_sweep_says_what_is_missing_and_never_averages_other_folds_organs(tmp_path):
    folder = write_sweep(tmp_path / "trial", skip=[("smiler", 0.9, 2), ("smile", 0.9, 0)])
    with (folder / "figure3.csv").open("a") as file:
        file.write("smile,0.9,0,liver,0.1\nsmiler,0.9,2,liver,\n")  # one organ of two; and one without a score
    sweep = read_sweep(folder)
    assert sweep.missing() == 1
    means = sweep.estimates(MEAN)
    assert means["smile"][0.9].folds == 2
    assert means["smile"][0.9].mean == pytest.approx(np.mean([0.9 - 0.27 - 0.03 + 0.01 * fold for fold in (1, 2)]))
    assert sweep.estimates("liver")["smile"][0.9].folds == 3
    assert "1 of 18 trainings" in sweep_page(sweep, "trial")


def test_one_fold_has_no_interval_and_one_method_no_difference(tmp_path):
    sweep = read_sweep(write_sweep(tmp_path / "trial", methods=("smile",), alphas=(0.5,), folds=1))
    estimate = sweep.estimates(MEAN)["smile"][0.5]
    assert (estimate.folds, estimate.std, estimate.low, estimate.high) == (1, None, None, None)
    html = sweep_page(sweep, "trial")
    assert "nothing to compare" in html
    assert "±" not in html


def test_intervals_hold_the_mean_and_lie_between_the_folds(tmp_path):
    estimate = read_sweep(write_sweep(tmp_path / "trial")).estimates("liver")["smile"][0.0]
    assert 0.90 <= estimate.low < estimate.mean < estimate.high <= 0.92
    assert estimate.std == pytest.approx(0.01)


def test_what_was_not_measured_is_said():
    assert what_to_see("liver", {"smile": {}}) == "Nothing has been measured of liver yet."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method,alpha\n", "has not the columns"),
        (HEAD, "holds no score yet"),
        (HEAD + "smile,x,0,liver,0.5\n", "line 2: not a score"),
        (HEAD + "smile,0.5,0,liver,1.5\n", "line 2: alpha and dice are shares"),
        (HEAD + "smile,0.5,0,liver,nan\n", "line 2: alpha and dice are shares"),
    ],
)
def test_what_is_no_sweep_is_one_sentence(tmp_path, text, message):
    (tmp_path / "figure3.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_sweep(tmp_path)


def test_options_that_do_not_go_together_are_refused(tmp_path, capsys):
    assert main(["report"]) == 2
    assert "--sweep: neither it nor a RUN is given" in capsys.readouterr().err
    assert main(["report", "run", "--sweep", str(tmp_path)]) == 2
    assert "--sweep: is a page of its own" in capsys.readouterr().err
    assert main(["report", "--sweep", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 2
    assert "figure3.csv: cannot be read" in capsys.readouterr().err
    folder = write_sweep(tmp_path / "trial")
    assert main(["report", "--sweep", str(folder), "-o", str(folder / "figure3.csv")]) == 2
    assert "would overwrite the input" in capsys.readouterr().err
