import json
import random
import threading

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from benchmarks.sweep import __main__ as command
from benchmarks.sweep import study as study_module
from benchmarks.sweep import trial as trial_module
from benchmarks.sweep.config import load_sweep
from benchmarks.sweep.dashboard import find_storage
from benchmarks.sweep.kills import count, kill_again_and_again
from benchmarks.sweep.study import Claim, SweepStudy, open_storage, this_worker
from benchmarks.sweep.trial import Place, TrialRunner, read_validation
from benchmarks.sweep.worker import work
from pretrain.types import UserError

BASE = {"rate": 0.5, "decay": 0.1, "max_steps": 10, "step_s": 0.0, "val_every": 5}
DEAD = {"pid": 2**22 + 1, "started": 0.0}


def make(tmp_path, *, worker=None, base=None, **changes):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE | (base or {})))
    sweep = {
        "base": str(tmp_path / "base.yaml"),
        "entry": ["benchmarks.sweep.rehearsal"],
        "space": {"rate": {"type": "float", "low": 0.01, "high": 1.0, "log": True}, "decay": [0.1, 0.5]},
        "trials": 4,
        "objective": {"metric": "val/loss", "direction": "minimize"},
    } | changes
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(sweep))
    config, out = load_sweep(str(tmp_path / "one.yaml")), tmp_path / "out"
    out.mkdir(exist_ok=True)
    study = SweepStudy(config, storage=open_storage(f"sqlite:///{out / 'study.db'}"), out=out, worker=worker)
    study.make_plan({"rate": 0.5, "decay": 0.1} if "rate" in sweep["space"] else {"decay": 0.1})
    return study


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(trial_module, "POLL_S", 0.02)


def test_trial_0_has_the_defaults_then_the_enqueued_and_values_are_right(tmp_path):
    study = make(tmp_path, enqueue=[{"rate": 0.3}, {"rate": 0.5, "decay": 0.1}])  # the second is trial 0 again
    work(study, stop=threading.Event())
    trials = study.trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert trials[0].params == {"rate": 0.5, "decay": 0.1}
    assert trials[1].params == {"rate": 0.3, "decay": 0.1}
    for trial in trials:  # restated: the parabola after 10 steps
        assert trial.value == pytest.approx(
            (trial.params["rate"] - 0.3) ** 2 + (trial.params["decay"] - 0.5) ** 2 + 0.1
        )
        assert sorted(trial.intermediate_values) == [5, 10]


def test_a_grid_is_run_once_each_and_more_is_none(tmp_path):
    study = make(tmp_path, space={"decay": [0.5, 0.1, 0.9]}, sampler={"kind": "grid"}, trials=3)
    work(study, stop=threading.Event())
    assert [trial.params["decay"] for trial in study.trials()] == [0.1, 0.5, 0.9]
    assert study.claim() is None


def test_a_small_space_gives_distinct_settings(tmp_path):
    study = make(tmp_path, space={"decay": [0.1, 0.2, 0.3, 0.4, 0.5]}, sampler={"kind": "random"}, trials=5)
    work(study, stop=threading.Event())
    assert sorted(trial.params["decay"] for trial in study.trials()) == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_a_dead_workers_trial_is_the_same_trial_again_from_its_checkpoint(tmp_path):
    dead = make(tmp_path, worker=this_worker() | DEAD)
    number = dead.claim().trial.number
    run = Place(dead.out, number).run
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").write_text("5")
    (run / "metrics.csv").write_text("epoch,step,train/loss,val/loss\n0,5,,0.7\n")
    setting = {"overrides": {}, "params": dead.trials()[0].params}
    Place(dead.out, number).setting.parent.mkdir()
    Place(dead.out, number).setting.write_text(json.dumps(setting, indent=2, sort_keys=True) + "\n")
    study = make(tmp_path)
    work(study, stop=threading.Event())
    first = study.trials()[0]
    assert (first.number, first.state, first.user_attrs["retries"]) == (number, TrialState.COMPLETE, 1)
    assert (run / "steps.log").read_text().split() == ["6", "7", "8", "9", "10"]
    assert first.intermediate_values[5] == 0.7
    assert len(study.trials()) == 4


def test_a_living_workers_trial_is_left_alone_and_one_of_another_machine_until_its_heart_stops(tmp_path, monkeypatch):
    make(tmp_path).claim()  # by this very process
    elsewhere = make(tmp_path, worker={"machine": "elsewhere", **DEAD})
    assert elsewhere.claim().trial.number == 1
    here = make(tmp_path)
    assert here.claim().trial.number == 2
    monkeypatch.setattr(here.storage, "_get_stale_trial_ids", lambda _: [2])  # ids count from 1
    claim = here.claim()
    assert (claim.trial.number, claim.retries) == (1, 1)


def test_a_kill_while_a_trial_is_made_loses_nothing(tmp_path):
    study = make(tmp_path)
    study.study.enqueue_trial(study.plan[0])  # killed between the two writes of a planned trial
    assert study.claim().trial.params == study.plan[0]
    bare = study.study.ask()  # killed before it was anybody's, with nothing drawn
    claim = study.claim()
    assert (claim.trial.number, claim.retries, set(claim.trial.params)) == (bare.number, 0, {"rate", "decay"})
    assert len(study.trials()) == 2


def test_a_trial_that_loses_its_worker_each_time_fails_in_the_end(tmp_path):
    make(tmp_path, trials=1, retries=1, worker=this_worker() | DEAD).claim()
    assert make(tmp_path, trials=1, retries=1, worker=this_worker() | DEAD).claim().retries == 1
    study = make(tmp_path, trials=1, retries=1)
    assert study.claim() is None
    assert study.trials()[0].state == TrialState.FAIL
    assert "given up after 1 retries" in study.trials()[0].user_attrs["reason"]


def test_a_failing_trial_says_why_and_the_others_go_on(tmp_path):
    study = make(tmp_path, space={"fail": [0, 1]}, trials=2, sampler={"kind": "random"})
    study.study.set_user_attr("plan", [{"fail": 0}])
    work(study, stop=threading.Event())
    states = {trial.params["fail"]: trial for trial in study.trials()}
    assert states[0].state == TrialState.COMPLETE
    assert states[1].state == TrialState.FAIL
    assert states[1].user_attrs["reason"] == "exit status 2: error: fail=1.0 is not supported: give 0"


def test_bad_trials_are_pruned_and_their_run_is_stopped_with_a_checkpoint(tmp_path):
    base = {"max_steps": 400, "step_s": 0.02, "val_every": 5}
    study = make(tmp_path, base=base, pruner={"kind": "median", "warmup": 5, "startup": 1}, trials=2)
    study.study.add_trial(  # one good trial before
        optuna.create_trial(
            params={"rate": 0.3, "decay": 0.5},
            distributions={p.name: p.distribution for p in study.config.space},
            value=0.0,
            intermediate_values=dict.fromkeys(range(5, 401, 5), 0.0),
        )
    )
    trial = study.claim().trial
    TrialRunner(study, Claim(trial, 0), cpus=[0], stop=threading.Event()).run()
    frozen = study.trials()[1]
    assert frozen.state == TrialState.PRUNED
    assert "median pruner" in frozen.user_attrs["reason"]
    run = Place(study.out, 1).run
    assert not (run / "summary.json").exists()
    assert 5 <= int((run / "checkpoints" / "last.ckpt").read_text()) < 400


def test_hyperband_prunes_some_and_ends_all(tmp_path):
    base = {"max_steps": 60, "step_s": 0.005, "val_every": 5}
    study = make(tmp_path, base=base, pruner={"kind": "hyperband", "warmup": 5}, sampler={"kind": "random"}, trials=10)
    work(study, stop=threading.Event())
    states = [trial.state for trial in study.trials()]
    assert len(states) == 10
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    pruned = [trial for trial in study.trials() if trial.state == TrialState.PRUNED]
    assert all("hyperband pruner" in trial.user_attrs["reason"] for trial in pruned)
    assert all(max(trial.intermediate_values) >= 5 for trial in pruned)


def test_validations_are_read_over_attempts_and_half_lines_are_left(tmp_path):
    (tmp_path / "metrics_1.csv").write_text("epoch,step,train/loss,val/loss\n0,3,0.4,\n0,5,,0.7\n")
    (tmp_path / "metrics.csv").write_text("epoch,step,val/loss\n0,10,0.6\n0,15,0.")
    assert read_validation(tmp_path, "val/loss") == [(5, 0.7), (10, 0.6)]


def test_a_study_of_other_settings_and_leftover_runs_are_refused(tmp_path, capsys):
    make(tmp_path)
    with pytest.raises(UserError, match="made with other settings"):
        make(tmp_path, overrides={"val_every": 2})
    (tmp_path / "out" / "study.db").unlink()
    (tmp_path / "out" / "runs" / "trial-0000").mkdir(parents=True)
    assert command.main([str(tmp_path / "one.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert "holds runs, but the study has no trials" in capsys.readouterr().err


def test_a_driver_that_is_missing_is_named():
    with pytest.raises(UserError, match=r"driver is not installed.*psycopg2-binary"):
        open_storage("postgresql://nobody@localhost/none")


def test_dashboard_names_what_there_is(tmp_path):
    with pytest.raises(UserError, match="run one first: make sweep"):
        find_storage(None, folder=tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "study.db").touch()
    for name in (None, "one", "my/one.yaml"):
        assert find_storage(name, folder=tmp_path).endswith("one/study.db")
    with pytest.raises(UserError, match=r"no study two in .*: there are one"):
        find_storage("two", folder=tmp_path)


def test_killed_workers_and_commands_lose_and_double_nothing(tmp_path):
    base = {"max_steps": 40, "step_s": 0.05}
    study = make(tmp_path, base=base, trials=8)
    events = kill_again_and_again(study.config, study.out, kills=3, workers=2, rng=random.Random(1))
    found = count(study.config, study.out)
    assert len(events) == 3
    assert (found["trials"], found["lost"], found["doubled"]) == ({"COMPLETE": 8}, 0, 0)
    assert study_module.is_gone(this_worker()) is False
