import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from evals import classify
from evals.classify import LINEAR, ClassifyConfig, Evaluation
from evals.data.config import load_dataset_config
from evals.features import FeatureConfig
from evals.neighbours import fit_ridge
from evals.probe.config import ProbeConfig
from evals.probe.heads import HeadConfig
from evals.results import read
from pretrain.types import UserError


@pytest.fixture
def config(tmp_path):
    features = FeatureConfig(
        folder=tmp_path / "features", precision="fp32", dtype="float32", batch_size=32, num_workers=0
    )
    return ClassifyConfig(
        probe=ProbeConfig(
            epochs=6, lrs=(1e-4, 2e-2), weight_decays=(0.05,), batch_size=16, head=HeadConfig(num_heads=2)
        ),
        linear=replace(LINEAR, epochs=4, lrs=(1e-2,), weight_decays=(0.05,), batch_size=16),
        shots=(1, 5),
        num_draws=2,
        features=features,
        out=tmp_path / "evals",
        results=tmp_path / "results.jsonl",
    )


@pytest.fixture
def evaluate(config, tiny_encoder, drawn_set, monkeypatch):
    """An evaluation on drawn pictures, 120 to train on and 42 to test."""

    def start(
        *,
        seed=0,
        train=None,
        test=None,
        tasks=None,
        config=config,
        encoder=None,
        augment="none",
        num_train=None,
        **options,
    ):
        sets = {"train": train or drawn_set(120), "test": test or drawn_set(42, split="test")}
        monkeypatch.setattr(classify, "build_set", lambda dataset, split, *, img_size: sets[split])
        dataset = replace(
            load_dataset_config("scenes_shape"), name="drawn", augment=augment, num_train=num_train, num_test=None
        )
        notes = []
        config = replace(config, **({"tasks": tasks} if tasks else {}), **options)
        evaluation = Evaluation(encoder or tiny_encoder(), dataset, config, seed=seed, note=notes.append)
        evaluation.notes, evaluation.sets = notes, sets
        return evaluation

    return start


def by_metric(rows):
    return {(row.task, row.metric): row for row in rows}


def test_all_tasks(evaluate, config):
    """Colours are easy even for random weights: everything that is trained is far above the chance of a third."""
    rows = by_metric(evaluate().run())
    probes = [
        (task, metric) for task in ("attentive_probe", "linear_probe") for metric in ("top1", "top5", "mean_per_class")
    ]
    assert list(rows) == [*probes, ("knn", "top1"), ("few_shot", "top1_1shot"), ("few_shot", "top1_5shot")]
    for key, row in rows.items():
        assert row.value > 80, key
        assert row.n == 42
        assert row.objective == "random"
        if row.metric == "mean_per_class":
            assert row.interval is None, "it is no share of the pictures"
        else:
            assert row.interval[0] <= row.value <= row.interval[1]
    row = rows["attentive_probe", "top1"]
    assert row.details["setting"]["lr"] == 2e-2
    assert read(config.results) == list(rows.values())
    written = json.loads((config.out / "attentive_probe/drawn" / row.run.split("/")[-1] / "scores.json").read_text())
    assert written["test"]["top1"] == row.value


def test_finished_rows_are_reused(evaluate, config):
    first = evaluate(tasks=("knn", "few_shot")).run()
    again = evaluate(tasks=("knn", "few_shot"))
    assert again.run() == first
    assert all("already" in note for note in again.notes)
    assert len(again.notes) == 2
    assert again.sets["train"].num_loads == 0
    assert len(read(config.results)) == len(first)


@pytest.mark.parametrize("what", ["seed", "encoder", "shots", "labels"])
def test_other_work_is_not_taken_for_finished(evaluate, config, tiny_encoder, drawn_set, what):
    first = evaluate(tasks=("few_shot",)).run()
    relabelled = drawn_set(120)
    relabelled.label_N = relabelled.label_N[::-1].copy()
    other = {
        "seed": lambda: evaluate(tasks=("few_shot",), seed=1),
        "encoder": lambda: evaluate(tasks=("few_shot",), encoder=tiny_encoder(seed=5)),
        "shots": lambda: evaluate(tasks=("few_shot",), shots=(2,)),
        "labels": lambda: evaluate(tasks=("few_shot",), train=relabelled),
    }[what]()
    other.run()
    assert len(read(config.results)) > len(first)


def test_half_a_task_is_made_again(evaluate, config):
    """A crash between two rows of one task."""
    rows = evaluate(tasks=("few_shot",)).run()
    lines = config.results.read_text().splitlines()
    config.results.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    assert [row.metric for row in evaluate(tasks=("few_shot",)).run()] == [row.metric for row in rows]
    assert [row.metric for row in read(config.results)] == ["top1_1shot", "top1_1shot", "top1_5shot"]


def test_knn_is_chosen_on_held_out_pictures_and_uses_all(evaluate):
    """Restated: cosine votes over all 120 training pictures with the k that the row names."""
    evaluation = evaluate(tasks=("knn",))
    row = evaluation.run()[0]
    train, test = (evaluation.features(part) for part in ("train", "test"))
    a = torch.nn.functional.normalize(torch.tensor(train.summary_SE), dim=1).double()
    b = torch.nn.functional.normalize(torch.tensor(test.summary_SE), dim=1).double()
    right = 0
    for x, label in zip(b, test.label_S, strict=True):
        similarity = a @ x
        nearest = similarity.argsort(descending=True)[: row.details["k"]]
        votes = np.zeros(3)
        for index in nearest:
            votes[train.label_S[index]] += np.exp(float(similarity[index]) / 0.07)
        right += int(votes.argmax() == label)
    assert row.value == pytest.approx(100 * right / 42)


def test_few_shot_is_ridge_on_those_pictures(evaluate):
    evaluation = evaluate(tasks=("few_shot",), seed=3)
    row = by_metric(evaluation.run())["few_shot", "top1_5shot"]
    chosen = classify.few_shot_indices(evaluation.train.label_N, shots=5, seed=3000)
    x, y = evaluation._summaries("train", chosen)
    test, test_y = evaluation._summaries("test", np.arange(42))
    scores = fit_ridge(x, y, num_classes=3, penalty=row.details["penalties"][0])(test)
    assert row.details["draws"][0] == pytest.approx(100 * float((scores.argmax(1) == test_y).float().mean()))
    assert row.value == pytest.approx(np.mean(row.details["draws"]))


def test_augmented_mode_encodes_every_epoch(evaluate, config, tiny_encoder):
    config = replace(config, probe=replace(config.probe, mode="augmented", epochs=3), tasks=("attentive_probe",))
    evaluation = evaluate(config=config, augment="published")
    row = evaluation.run()[0]
    assert evaluation.sets["train"].num_loads == 3 * 96 + 12, "6 batches of 16 an epoch, and the held-out 12 at the end"
    assert evaluation.sets["test"].num_loads == 42, "the test set is looked at once"
    assert row.value > 40
    assert row.details["unreadable"] == 0


def test_unreadable_pictures_of_augmented_probes_count_once(evaluate, config, drawn_set):
    config = replace(config, probe=replace(config.probe, mode="augmented", epochs=3), tasks=("attentive_probe",))
    row = evaluate(config=config, train=drawn_set(120, bad=[7]), test=drawn_set(42, split="test", bad=[3])).run()[0]
    assert row.details["unreadable"] == 2
    assert row.n == 41
    bad = evaluate(config=config, test=drawn_set(42, split="test", bad=range(3)))
    with pytest.raises(UserError, match=r"3 of 42 pictures could not be read, more than 5%"):
        bad.run()


def test_nothing_is_chosen_on_the_test_set(evaluate, config, drawn_set):
    """Test pictures with other labels, the same for all of a class: the same settings, k and penalties are chosen."""
    turned = drawn_set(42, split="test")
    turned.label_N = (turned.label_N + 1) % 3
    grid = replace(config.probe, lrs=(1e-3, 2e-2), epochs=2)
    rows = [by_metric(evaluate(probe=grid, test=test).run()) for test in (drawn_set(42, split="test"), turned)]
    for key in (("attentive_probe", "top1"), ("linear_probe", "top1")):
        assert rows[0][key].details["setting"] == rows[1][key].details["setting"]
    assert rows[0]["knn", "top1"].details["k"] == rows[1]["knn", "top1"].details["k"]
    key = ("few_shot", "top1_5shot")
    assert rows[0][key].details["penalties"] == rows[1][key].details["penalties"]
    assert rows[0][key].value > rows[1][key].value


def test_classes_in_another_order(evaluate, drawn_set):
    test = drawn_set(42, split="test")
    test.classes = test.classes[::-1]
    with pytest.raises(
        UserError, match=r"drawn: label 0 is 'class0' in the training split and 'class2' in the test split"
    ):
        evaluate(test=test)


def test_best_on_test_is_labelled(evaluate):
    rows = by_metric(evaluate(tasks=("attentive_probe",), best_on_test=True).run())
    best = rows["attentive_probe", "top1_best_on_test"]
    assert best.value >= rows["attentive_probe", "top1"].value
    assert best.details["note"] == "the setting was chosen on the test set"


def test_unreadable_pictures(evaluate, drawn_set):
    evaluation = evaluate(
        tasks=("attentive_probe", "knn"), train=drawn_set(120, bad=[5]), test=drawn_set(42, split="test", bad=[0, 41])
    )
    rows = evaluation.run()
    assert {row.n for row in rows} == {40}
    assert any("test: 2 unreadable pictures left out" in note for note in evaluation.notes)


def test_one_picture_a_class(evaluate, drawn_set):
    train, test = drawn_set(40, classes=40), drawn_set(40, classes=40, split="test")
    evaluation = evaluate(train=train, test=test)
    rows = by_metric(evaluation.run())
    assert ("few_shot", "top1_1shot") in rows
    assert ("few_shot", "top1_5shot") not in rows
    assert any("too few pictures of a class" in note for note in evaluation.notes)
    assert any("5-shot is left out" in note for note in evaluation.notes)


def test_a_part_of_a_set_is_not_called_by_its_name(evaluate):
    evaluation = evaluate(tasks=("knn",), num_train=1000)
    assert evaluation.run()[0].dataset == "drawn-partial"
    assert evaluation.notes == ["drawn: 120 of 1,000 pictures in train: rows and tables call it drawn-partial"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("guess",)}, r"tasks: 'guess' is unknown; there are attentive_probe"),
        ({"shots": (0,)}, r"shots=\[0\]"),
        ({"num_draws": 0}, r"num_draws=0"),
    ],
)
def test_settings_that_cannot_be_meant(config, change, message):
    with pytest.raises(UserError, match=message):
        replace(config, **change).check()
