"""The rates of the rivals are searched alike, and each sweep trains what its row of the study trains."""

import json
from pathlib import Path

import pytest
import yaml

from benchmarks.studies.arms import arm_of, resolve
from benchmarks.studies.load import load_study
from benchmarks.sweep.config import load_sweep
from benchmarks.sweep.trial import base_arguments

ROWS = {
    "aimv2": "AIMv2", "clip": "CLIP", "clip_32": "CLIP, batch 32",
    "siglip": "SigLIP", "cap": "Cap", "cappa": "CapPa", "aimv1": "AIMv1", "mae": "MAE",
}  # fmt: skip


def trained(config, folder):
    """The config that a sweep's trials start from, without rate, seed and budget."""
    arguments = base_arguments(config, folder)
    found = yaml.safe_load(Path(arguments[1]).read_text())
    fields = dict(argument.removeprefix("--").split("=") for argument in arguments[2:])
    found = resolve(found, {name: yaml.safe_load(value) for name, value in fields.items()})
    for name in ("seed_everything", "max_samples"):
        found.pop(name)
    return found


@pytest.mark.parametrize("name", ROWS)
def test_a_sweep_trains_what_the_row_trains(name, tmp_path):
    study, sweep = load_study("loss_choice"), load_sweep(f"rate_{name}")
    row = study.row(ROWS[name])
    expected = dict(arm_of(study, row, seed=0).config)
    found = trained(sweep, tmp_path)
    for config in (expected, found):
        config["model"]["optim"].pop("lr")
    assert found == expected


def test_all_are_searched_alike():
    sweeps = [load_sweep(f"rate_{name}") for name in ROWS]
    first = sweeps[0]
    for sweep in sweeps:
        assert (sweep.space, sweep.objective, sweep.sampler, sweep.trials) == (
            first.space, first.objective, first.sampler, first.trials,
        )  # fmt: skip
        assert sweep.overrides["seed_everything"] == first.overrides["seed_everything"] == 100
    assert first.trials == 3
    assert first.objective.dataset == "scenes_shape_tuning"


@pytest.mark.parametrize("name", ROWS)
def test_rates_are_those_that_the_sweeps_chose(name):
    """A row's rate is the best of its sweep's shipped summary; without a summary none is called tuned."""
    study, sweep = load_study("loss_choice"), load_sweep(f"rate_{name}")
    row, summary = study.row(ROWS[name]), Path(f"benchmarks/results/sweeps/rate_{name}.json")
    rate = arm_of(study, row, seed=0).config["model"]["optim"]["lr"]
    if not summary.is_file():
        assert not row.tuned
        return
    content = json.loads(summary.read_text())
    complete = {trial["params"]["model.optim.lr"]: trial["value"] for trial in content["trials"]}
    assert sorted(complete) == [5e-4, 1e-3, 2e-3]
    assert len(complete) == sweep.trials
    assert rate == max(complete, key=complete.get)
