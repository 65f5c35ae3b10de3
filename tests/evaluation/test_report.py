import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

from crossmost.errors import InputError
from crossmost.evaluation.report import Example, ReportData, write_report

VOID = {"meta", "link", "img", "br", "hr", "input"}
HOSTILE = '<script>alert("1")</script>'
FILE = '"><img src=x onerror=alert(1)>.ply'
NAMES = ("mug", "bowl", HOSTILE, "$x^2$")


class Page(HTMLParser):
    """Reads a page: its tags, its text by css class, and whether every tag that opens also closes."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.open, self.text, self.marked = [], [], "", []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("class") or ""))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop()[0] == tag
        self.text += " " if tag in ("td", "th") else ""

    def handle_data(self, data):
        if not any(tag == "style" for tag, _ in self.open):
            self.text += data.replace("\xa0", " ")
            self.marked.append((self.open[-1][1] if self.open else "", data.strip()))

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def of_class(self, name):
        return [text for classes, text in self.marked if name in classes.split() and text]

    def plain(self):
        return re.sub(r"\s+", " ", self.text)


def posteriors(labels, right, classes, confidence=0.9):
    """Name the true class of the first `right` clouds and the next class of the others."""
    named = np.where(np.arange(len(labels)) < right, labels, (labels + 1) % classes)
    rows = np.full((len(labels), classes), (1 - confidence) / (classes - 1))
    rows[np.arange(len(labels)), named] = confidence
    return rows


def records(epochs=6, classes=4):
    terms = {"loss/st_point": 1.0, "loss/fair_point": 2.0}
    rows = [
        {"epoch": e, "loss": 3.0 - 0.1 * e, "kept": 0.3 + 0.1 * e, "agreement": 0.5, "churn": 0.4 / (e + 1)}
        | {"selection_score": 0.1 * e, "histogram": [5] * classes, "kept_accuracy": 0.8}
        | terms
        for e in range(epochs)
    ]
    rows[-1]["chosen_epoch"] = epochs - 2
    return rows


def examples(count, truth="mug"):
    picture = np.arange(64, dtype=np.uint8).reshape(8, 8)
    return [Example(picture, "bowl", HOSTILE, truth, f"{index} {FILE}") for index in range(count)]


@pytest.fixture
def labels():
    return np.arange(100) % 4


@pytest.fixture
def labelled(labels):
    """Points rise from 50 to 80 %, images fall from 70 to 60 %."""
    before = {"point": posteriors(labels, 50, 4), "image": posteriors(labels, 70, 4)}
    after = {"point": posteriors(labels, 80, 4), "image": posteriors(labels, 60, 4, confidence=0.99)}
    return {"title": f"Report of {HOSTILE}", "class_names": NAMES, "before": before, "after": after}


@pytest.fixture
def full(labelled, labels):
    return ReportData.from_posteriors(
        **labelled,
        labels=labels,
        provenance=[("data", FILE), ("sha256", "ab" * 32)],
        training=records(),
        won=examples(30),
        totals={"won": 42},
        lost=examples(2),
        warnings=[f"collapse of {HOSTILE}"],
    )


def read(tmp_path, data):
    return Page(write_report(tmp_path / "report.html", data))


def test_page_is_well_formed_and_needs_nothing_from_outside(tmp_path, full):
    page = read(tmp_path, full)
    for _, attrs in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attrs.get(name) or "#").startswith(("data:", "#"))
        assert not any(name.startswith("on") for name in attrs)
    assert not page.all("script")
    assert not page.all("iframe")
    assert "http" not in page.source.replace("http-equiv", "")
    assert "@import" not in page.source
    assert set(re.findall(r"url\((.)", page.source)) <= {"#"}
    identifiers = [attrs["id"] for tag, attrs in page.tags if "id" in attrs and tag == "section"]
    assert {attrs["href"][1:] for attrs in page.all("a")} <= set(identifiers)


@pytest.mark.parametrize(("chosen", "words"), [(True, "chose the checkpoint"), (False, "was watched only")])
def test_the_caption_of_the_score_says_whether_it_chose(tmp_path, full, chosen, words):
    assert words in read(tmp_path, replace(full, chosen_by_score=chosen)).text


def test_hostile_names_are_text(tmp_path, full):
    page = read(tmp_path, full)
    assert HOSTILE in page.text
    assert FILE in page.text
    assert f"Report of {HOSTILE}" in page.text
    assert "<script" not in page.source


def test_headings_and_alternative_texts(tmp_path, full):
    page = read(tmp_path, full)
    assert len(page.all("h1")) == 1
    pictures = page.all("img")
    assert len(pictures) == 32
    assert all(HOSTILE in picture["alt"] and "mug" in picture["alt"] for picture in pictures)
    drawings = page.all("svg")
    assert len(drawings) == 3 + 3 + 3  # over time, loss terms, reliability of the branches
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in drawings)
    assert page.all("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))


def test_figures_take_the_colours_of_the_page(tmp_path, full):
    page = read(tmp_path, full)
    for drawing in re.findall(r"<svg.*?</svg>", page.source, re.DOTALL):
        assert "var(--" in drawing
        assert not re.search(r"(fill|stroke): #", drawing)
        assert "font-family" not in drawing


def test_gains_are_gains_and_losses_are_red(tmp_path, full):
    page = read(tmp_path, full)
    assert "50.0 % zero-shot, 80.0 % adapted" in page.plain()
    assert "Images fell" in page.plain()
    assert "+30.0" in page.of_class("gain")
    assert "−10.0" in page.of_class("loss")
    assert "−10.0" not in page.of_class("gain")
    ece = [metrics["image"].ece for metrics in (full.before, full.after)]
    assert ece[1] > ece[0]
    assert f"+{ece[1] - ece[0]:.3f}" in page.of_class("loss")


def test_a_worse_point_branch_is_the_first_thing_said(tmp_path, labelled, labels):
    swapped = labelled | {"before": labelled["after"], "after": labelled["before"]}
    page = read(tmp_path, ReportData.from_posteriors(**swapped, labels=labels))
    assert "Adaptation made this branch worse." in page.plain()
    assert "−30.0" in page.of_class("loss")


def test_a_change_within_noise_is_called_that(tmp_path, labels):
    before, after = ({"point": posteriors(labels, right, 4)} for right in (50, 51))
    page = read(tmp_path, ReportData.from_posteriors("t", NAMES, before, after, labels))
    assert "within sampling noise" in page.plain()


def test_won_and_lost_are_counted(tmp_path, full):
    page = read(tmp_path, full)
    assert "Points: 30 of 100 predictions changed" in page.plain()
    assert "30 won" in page.of_class("gain")
    assert "0 lost" in page.plain()
    assert "10 lost" in page.of_class("loss")
    assert "30 of 42 are shown, spread evenly over them." in page.plain()


def test_provenance_and_what_labels_were_for(tmp_path, full, labelled):
    page = read(tmp_path, full)
    assert "Labels were used for this report only" in page.plain()
    assert "ab" * 32 in page.text
    assert [f"collapse of {HOSTILE}"] == [text for text in page.of_class("warning") if text]
    page = read(tmp_path, ReportData.from_posteriors(**labelled))
    assert "Labels were used" not in page.plain()
    assert "No labels were given" in page.plain()


def test_without_labels_only_label_free_things_are_said(tmp_path, labelled):
    data = ReportData.from_posteriors(**labelled, training=records(), changed=examples(1, truth=None))
    page = read(tmp_path, data)
    assert "changed 30.0 % of 100 predictions" in page.plain()
    assert "cannot say whether that is better or worse" in page.plain()
    assert "Name the same class" in page.plain()
    agreed = [f"{100 * share:.1f} %" for share in data.agreement]
    assert "Name the same class " + " ".join(agreed) in page.plain()
    for word in ("accuracy", "recall", "ECE", "confusion", "truth"):
        assert word.lower() not in page.plain().lower()
    assert not page.of_class("gain")
    assert not page.of_class("loss")


def test_one_branch_alone(tmp_path, labels):
    before, after = ({"point": posteriors(labels, right, 4)} for right in (50, 90))
    data = ReportData.from_posteriors("points only", NAMES, before, after, labels)
    assert data.agreement is None
    page = read(tmp_path, data)
    assert "Images" not in page.plain()
    assert "pseudo-label" not in page.plain().lower()
    assert "50.0 % → 90.0 %" in page.plain()


@pytest.mark.parametrize(("classes", "matrices"), [(30, True), (31, False), (1156, False)])
def test_many_classes_show_pairs_in_place_of_matrices(tmp_path, classes, matrices):
    labels = np.arange(2 * classes) % classes
    names = [f"class {index}" for index in range(classes)]
    before, after = ({"point": posteriors(labels, right, classes)} for right in (classes // 2, classes))
    data = ReportData.from_posteriors("t", names, before, after, labels, training=records(classes=classes))
    page = read(tmp_path, data)
    assert ('class="heat"' in page.source) is matrices
    assert "Most confused pairs" in page.plain()
    assert len(page.source) < 2_000_000
    assert f"All {classes} classes" in page.plain()


def test_a_class_that_is_not_there_and_a_perfect_model(tmp_path):
    perfect = {"point": np.eye(3)[[0, 1]]}
    page = read(tmp_path, ReportData.from_posteriors("t", "abc", perfect, perfect, [0, 1]))
    assert not re.search(r"\bnan\b", page.source)
    assert "no cloud is misclassified" in page.plain()
    assert "±0.0" in page.of_class("same")


def test_training_records_with_holes_are_drawn(tmp_path, labelled):
    holes = [
        {"epoch": 0, "kept": None, "loss": math.nan},
        {"step": 5, "loss": 1.0},
        {"epoch": 1, "kept": 0.5, "histogram": [0, 0, 0, 0]},
        {"epoch": 2, "kept": 0.6, "agreement": 0.1, "histogram": None, "chosen_epoch": None},
    ]
    page = read(tmp_path, ReportData.from_posteriors(**labelled, training=holes))
    (drawing,) = page.all("svg")
    assert "kept share 0.50 to 0.60" in drawing["aria-label"]
    page = read(tmp_path, ReportData.from_posteriors(**labelled, training=[{"epoch": 0}]))
    assert "hold no pseudo-label statistics" in page.plain()


def test_drawing_leaves_no_global_state_and_is_reproducible(tmp_path, full):
    settings = dict(matplotlib.rcParams)
    first = write_report(tmp_path / "a.html", full).read_bytes()
    assert dict(matplotlib.rcParams) == settings
    assert write_report(tmp_path / "b.html", full).read_bytes() == first


def test_out_may_be_a_folder_or_a_file_in_a_new_one(tmp_path, labelled):
    data = ReportData.from_posteriors(**labelled)
    assert write_report(tmp_path, data) == tmp_path / "report.html"
    assert write_report(tmp_path / "new" / "r.html", data).is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "report.html"]


def test_a_file_name_that_is_not_utf8_is_shown_all_the_same(tmp_path, labelled, labels):
    example = Example(np.zeros((4, 4, 3), np.uint8), "mug", "bowl", "mug", "scan_\udcff.ply")
    page = read(tmp_path, ReportData.from_posteriors(**labelled, labels=labels, lost=[example]))
    assert r"scan_\udcff.ply" in page.text


def test_a_bad_example_leaves_the_old_report(tmp_path, labelled, labels):
    path = write_report(tmp_path, ReportData.from_posteriors(**labelled))
    old = path.read_bytes()
    bad = Example(np.zeros((4, 4)), "mug", "bowl", "mug", "a.ply")
    with pytest.raises(InputError, match=r"uint8, found \(4, 4\) float64"):
        write_report(tmp_path, ReportData.from_posteriors(**labelled, labels=labels, won=[bad]))
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_missing_extra_names_the_pip_line(tmp_path, labelled, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "crossmost.evaluation.figures")
    monkeypatch.delattr("crossmost.evaluation.figures")
    with pytest.raises(InputError, match=r"matplotlib.*pip install 'crossmost\[report\]'"):
        write_report(tmp_path, ReportData.from_posteriors(**labelled))
