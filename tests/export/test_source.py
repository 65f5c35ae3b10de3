from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from crossmost.checkpoints.run import load_run
from crossmost.errors import InputError
from crossmost.export.source import load_exportable, trained_bank
from crossmost.models.grouping import group
from crossmost.runtime.class_bank import ClassBank
from crossmost.runtime.vocabulary import Vocabulary


def test_a_run_exports_what_it_evaluates(finished_run):
    run = load_run(finished_run)
    source = load_exportable(finished_run, None)
    assert source.sample is not None
    clouds = source.sample.points[:5]
    card = run.architecture.point
    with torch.no_grad():
        groups = [group(torch.from_numpy(cloud)[None], card.groups, card.neighbors) for cloud in clouds]
        features = [run.adapted.point_features(each) for each in groups]
        logits = torch.cat([run.adapted.classify(run.adapted.embed_point(each)) for each in features])
    embedding = source.embed(clouds)
    np.testing.assert_allclose(source.bank.logits(embedding), logits.numpy(), atol=1e-3)
    temperature = max(1.0, run.temperatures["adapted"][0])
    expected = (logits.double() / temperature).softmax(dim=1).numpy()
    np.testing.assert_allclose(source.bank.scores(embedding), expected, atol=1e-5)


def test_a_temperature_softens_scores_and_never_sharpens_them(finished_run):
    run = load_run(finished_run)
    found = [trained_bank(run.adapted, run.vocabulary, given).temperature for given in (0.5, 1.0, 1.7)]
    assert found == [1.0, 1.0, 1.7]


def test_it_is_the_network_that_the_recipe_chose(finished_run):
    run = load_run(finished_run)
    chosen = load_exportable(finished_run, None).encoder.state_dict()
    assert run.config.exported == "teacher"
    assert all(
        torch.equal(value, chosen[name]) for name, value in run.teacher.point_encoder.state_dict().items()
    )
    assert not all(
        torch.equal(value, chosen[name]) for name, value in run.student.point_encoder.state_dict().items()
    )


def test_class_vectors_that_training_left_longer_keep_their_length(finished_run, tiny_vocabulary):
    student = load_run(finished_run).student
    student.renormalize_classifier = False
    with torch.no_grad():
        student.classifier[:, 1] *= 3
    bank = trained_bank(student, tiny_vocabulary, 2.0)
    embedding = torch.nn.functional.normalize(torch.randn(6, student.dim), dim=1)
    with torch.no_grad():
        expected = student.classify(embedding).numpy()
    np.testing.assert_allclose(bank.logits(embedding.numpy()), expected, rtol=1e-4, atol=1e-3)
    assert bank.lengths[1] == pytest.approx(3 * bank.lengths[0], rel=0.2)
    assert bank.temperature == 2.0


def test_a_base_takes_its_classes_from_the_caller(tiny_base, tiny_vocabulary):
    asked = []

    def classes(text: str) -> ClassBank:
        asked.append(text)
        return ClassBank(tiny_vocabulary, trained, 1.5, unknown_similarity=0.5)

    trained = np.linspace(1.0, 2.0, len(tiny_vocabulary), dtype=np.float32)

    source = load_exportable(tiny_base, classes)
    assert asked == ["random directions"]
    assert source.sample is None
    assert source.provenance["kind"] == "base"
    assert (source.bank.vocabulary.embeddings == tiny_vocabulary.embeddings).all()
    # What was trained stays; a threshold belongs to the clouds it was found with.
    assert source.bank.temperature == 1.5
    assert (source.bank.lengths == trained).all()
    assert source.bank.unknown_similarity is None


def test_the_points_of_an_image_only_run_have_no_center(tmp_path, finished_run):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    assert load_exportable(run, None).provenance["center"] in ("mean", "balanced")
    config = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "mode": "image-only"}))
    assert load_exportable(run, None).provenance["center"] == "none"


def test_a_run_from_before_samples_were_kept_can_be_exported(tmp_path, finished_run):
    for file in finished_run.iterdir():
        if file.name != "sample.npz":
            (tmp_path / file.name).symlink_to(file)
    assert load_exportable(tmp_path, None).sample is None


def test_wrong_sources_are_one_line(tmp_path, finished_run, tiny_base, tiny_vocabulary):
    wide = Vocabulary.create(tiny_vocabulary.names, np.eye(4, 20), logit_scale=100.0, tag="another tower")
    for path, classes, message in (
        (finished_run, lambda _: ClassBank.plain(tiny_vocabulary), "is a run and has its classes"),
        (tiny_base, None, "is a base without classes"),
        (
            tiny_base,
            lambda _: ClassBank.plain(wide),
            r"expected text embeddings of 16 numbers .* found 20 \(another tower\)",
        ),
        (tmp_path, None, "expected a run made by `crossmost train`.* found a folder without one"),
        (tmp_path / "none", None, "found nothing there"),
        (finished_run / "config.yaml", None, "expected safetensors"),
    ):
        with pytest.raises(InputError, match=message):
            load_exportable(path, classes)


def test_the_vocabulary_stays_beside_the_trained_bank(finished_run, tiny_vocabulary):
    source = load_exportable(finished_run, None)
    assert (source.vocabulary.embeddings == tiny_vocabulary.embeddings).all()
    assert source.bank.vocabulary.names == tiny_vocabulary.names
    assert replace(source.bank.vocabulary, embeddings=tiny_vocabulary.embeddings).tag == tiny_vocabulary.tag
