import textwrap

import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution

from benchmarks.commands import arguments
from benchmarks.sweep import config as sweep_config
from benchmarks.sweep.__main__ import resolved_config
from benchmarks.sweep.config import FOLDER, load_sweep
from benchmarks.sweep.space import default_setting, grid, read_parameter, read_space
from pretrain.types import UserError


def write(tmp_path, **changes):
    (tmp_path / "base.yaml").write_text("rate: 0.5\nseed_everything: 3\n")
    content = {
        "base": str(tmp_path / "base.yaml"),
        "space": {"rate": {"type": "float", "low": 0.1, "high": 1.0}, "decay": ["5e-4", 0.1]},
        "trials": 4,
        "objective": {"metric": "val/loss", "direction": "minimize"},
    } | changes
    path = tmp_path / "one.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in content.items() if value is not None}, sort_keys=False)
    )
    return str(path)


def test_the_example_is_read(tmp_path):
    config = load_sweep(write(tmp_path, enqueue=[{"rate": 0.2}]), trials=9)
    assert (config.name, config.trials, config.seed, config.monitor) == ("one", 9, 3, "val/loss")
    assert config.space[0].distribution == FloatDistribution(0.1, 1.0)
    assert config.space[1].distribution == CategoricalDistribution((5e-4, 0.1))  # YAML reads 5e-4 as text
    assert config.entry == ("pretrain", "fit")


def test_the_documented_file_has_all_fields_and_a_trial_0(tmp_path):
    text = sweep_config.__doc__.split("A file with all fields:\n\n")[1].split("\n\nTrial 0")[0]
    path = tmp_path / "documented.yaml"
    path.write_text(textwrap.dedent(text))
    config = load_sweep(str(path))
    assert set(yaml.safe_load(path.read_text())) == set(sweep_config.FIELDS)
    first = default_setting(config.space, resolved_config(config, tmp_path), config.defaults, where="f")
    assert first["model.optim.lr"] == 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tirals": 4}, "'tirals' is unknown"),
        ({"objective": None}, "'objective' is missing"),
        ({"trials": None}, "'trials' is missing"),
        ({"trials": 0}, "trials is 0"),
        ({"base": "nowhere.yaml"}, "'nowhere.yaml' is no file"),
        ({"space": {"rate": {"type": "flaot", "low": 0, "high": 1}}}, "space.rate"),
        ({"space": {"rate": {"type": "float", "low": 0, "high": 1, "log": True}}}, "log wants low above 0"),
        ({"space": {"rate": {"type": "float", "low": 2, "high": 1}}}, "low 2 is above high 1"),
        ({"space": {"rate": {"type": "float", "low": 0, "high": 1, "choices": []}}}, "'choices' is unknown"),
        ({"space": {"rate": {"type": "int", "low": 0, "high": 2.5}}}, "high is 2.5"),
        ({"space": {"rate": {"type": "float", "low": 0, "high": 1, "step": 0.3}}}, "no whole number of steps"),
        ({"space": {"rate": [1, 1]}}, "a value twice"),
        ({"space": {"rate": [1, 2]}, "trials": 3}, "the space has 2 settings"),
        ({"overrides": {"rate": 1}}, "in space and in overrides"),
        ({"sampler": {"kind": "grid"}}, "continuous"),
        ({"sampler": {"kind": "cmaes"}}, "give tpe, random or grid"),
        ({"pruner": {"kind": "median", "warmup": -1}}, "warmup is -1"),
        ({"pruner": {"kind": "median"}, "space": {"data.batch_size": [8, 16]}, "trials": 2}, "pruner.kind to none"),
        ({"enqueue": [{"rate": 2.0}]}, "enqueue, setting 1: rate is 2.0"),
        ({"enqueue": [{"speed": 2.0}]}, "'speed' is not in the space"),
        ({"enqueue": [{"rate": 0.2}, {"rate": 0.3}, {"rate": 0.4}, {"rate": 0.5}]}, "less than the defaults and 4"),
        ({"objective": {"metric": "loss", "direction": "minimize"}}, "not of a run's validation"),
        ({"objective": {"metric": "val/loss", "direction": "down"}}, "give minimize or maximize"),
        ({"objective": {"eval": "evals imagenet", "metric": "top1", "direction": "maximize"}}, "{run}"),
        ({"objective": {"eval": "evals {run}", "metric": "top1", "direction": "maximize"}}, "task and dataset"),
    ],
)
def test_errors_are_one_line_that_names_the_field(tmp_path, changes, message):
    with pytest.raises(UserError) as error:
        load_sweep(write(tmp_path, **changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_grid_has_all_settings(tmp_path):
    space = {"rate": [1, 2], "depth": {"type": "int", "low": 2, "high": 6, "step": 2}}
    config = load_sweep(write(tmp_path, space=space, trials=None, sampler={"kind": "grid"}))
    assert config.trials == 6
    assert list(grid(config.space))[:4] == [
        {"rate": 1, "depth": 2},
        {"rate": 1, "depth": 4},
        {"rate": 1, "depth": 6},
        {"rate": 2, "depth": 2},
    ]


def test_settings_become_arguments():
    setting = {"a.lr": 5e-05, "a.n": 3, "b": True, "c": None, "d": "bpe", "e": '{"one": 1}'}
    assert arguments(setting) == ["--a.lr=5e-05", "--a.n=3", "--b=true", "--c=null", "--d=bpe", '--e={"one": 1}']


@pytest.mark.parametrize(
    ("value", "is_in"), [(0.1, True), (0.3, True), (0.25, False), (1.1, False), (True, False), ("x", False)]
)
def test_a_value_on_steps(value, is_in):
    parameter = read_parameter("rate", {"type": "float", "low": 0.1, "high": 0.9, "step": 0.1}, where="here")
    assert parameter.holds(value) == is_in


def test_defaults_are_the_bases_own_values_and_are_never_clipped():
    space = read_space({"a.lr": {"type": "float", "low": 0.1, "high": 1}, "b.depth": [2, 4]}, where="f")
    config = {"a": {"lr": 0.5}, "b": {"class_path": "X", "init_args": {"depth": 4}}}
    assert default_setting(space, config, {}, where="f") == {"a.lr": 0.5, "b.depth": 4}
    assert default_setting(space, config, {"b.depth": 2}, where="f") == {"a.lr": 0.5, "b.depth": 2}
    with pytest.raises(UserError, match=r"defaults \(trial 0\): a.lr is 5 .*numbers from 0.1 to 1|a.lr is 5, which"):
        default_setting(space, {"a": {"lr": 5}, "b": {"depth": 2}}, {}, where="f")
    with pytest.raises(UserError, match="a has no field 'lr'; did you mean lrs"):
        default_setting(space, {"a": {"lrs": 5}, "b": {"depth": 2}}, {}, where="f")


def test_what_all_trials_share_is_in_the_fingerprint(tmp_path):
    one = load_sweep(write(tmp_path)).fingerprint()
    assert load_sweep(write(tmp_path, trials=8)).fingerprint() == one  # more of the same
    assert load_sweep(write(tmp_path, overrides={"x": 1})).fingerprint() != one
    path = write(tmp_path)
    (tmp_path / "base.yaml").write_text("rate: 0.6\n")
    assert load_sweep(path).fingerprint() != one


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_sweeps_are_read(path):
    assert load_sweep(str(path)).trials >= 2
