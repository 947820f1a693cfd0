"""Studies are read whole or refused with a line, and the shipped ones compare what they say."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from benchmarks.reference import load_reference
from benchmarks.studies.arms import arm_of, plan, read_base, resolve
from benchmarks.studies.config import slug
from benchmarks.studies.load import FOLDER, load_study, read_evals
from evals.configs import config_names
from pretrain.types import UserError

#: Published values that a config may leave out (Table 9).
AIMV2 = {"image_weight": 0.4, "text_weight": 1.0}
GOOD = {
    "title": "T",
    "question": "Q?",
    "base": "configs/benchmarks/base/ablation.yaml",
    "minutes": 3,
    "evals": "short",
    "rows": [{"name": "a"}, {"name": "b", "change": {"model.objective.image_weight": 0.2}}],
    "claims": [{"row": "b", "column": "probe", "expect": "equal", "margin": 1, "source": "ours"}],
}


def write(folder, **changes):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in (GOOD | changes).items() if value is not None}))
    return str(path)


def test_a_study_is_read(tmp_path):
    study = load_study(write(tmp_path))
    assert [row.name for row in study.rows] == ["a", "b"]
    assert study.columns == ("probe", "vqa", "textvqa", "choice")
    assert study.claims[0].sentence("a") == "probe: b equals a within 1 points"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(title=None), "field 'title' is missing"),
        (dict(rows=[{"name": "a", "change": {"x": 1}}]), "the first row is the base"),
        (dict(rows=[{"name": "a"}, {"name": "a", "change": {"x": 1}}]), "'a' is there twice"),
        (dict(rows=[{"name": "a"}, {"name": "b", "change": {"x": 1, "y": 2}}]), "changes 2 fields"),
        (dict(rows=[{"name": "a"}, {"name": "b"}]), "changes 0 fields"),
        (dict(rows=[{"name": "a"}, {"name": "b", "start": "c", "change": {"x": 1}}]), "starts from 'c'"),
        (dict(rows=[{"name": "a"}, {"name": "b", "change": {"x": 1}, "budget": "hours"}]), "samples or flops"),
        (dict(rows=[{"name": "a"}, {"name": "b", "change": {"x": 1}, "tuned": {"model.encoder.depth": 2}}]), "optim"),
        (dict(rows=[{"name": "a"}, {"name": "b", "frozen": "timm:x", "change": {"x": 1}}]), "nothing else"),
        (dict(rows=[{"name": "a"}, {"nam": "b"}]), "field 'nam' is unknown"),
        (dict(columns=["probes"]), "column 'probes' is of none"),
        (dict(claims=[{"row": "c", "column": "probe", "expect": "lower", "source": "x"}]), "about row 'c'"),
        (dict(claims=[{"row": "b", "column": "knn", "expect": "lower", "source": "x"}]), "about column 'knn'"),
        (dict(claims=[{"row": "b", "column": "probe", "expect": "equal", "source": "x"}]), "margin"),
        (dict(claims=[{"row": "b", "column": "probe", "expect": "better", "source": "x"}]), "'better'"),
        (dict(base="configs/none.yaml"), "is no file"),
        (dict(evals="none"), "'none' is unknown"),
        (dict(minutes="abc"), "wrong type"),
        (dict(rows=5), "wrong type"),
        (dict(rows=[{"name": "a"}, {"name": "b", "change": "x"}]), "fields by dotted name"),
        (dict(reference={"paper_0": {"probe": "in1k"}}), "reference 'paper_0' is unknown"),
        (dict(reference={"paper_9a": {"probe": "in2k"}}), "no column 'in2k'"),
        (dict(reference={"paper_9a": {"top1": "in1k"}}), "'top1' is no column"),
    ],
)
def test_bad_studies(tmp_path, changes, message):
    claims = changes.get("claims", None if "rows" in changes or "columns" in changes else GOOD["claims"])
    with pytest.raises(UserError, match=message):
        load_study(write(tmp_path, **{"claims": claims} | changes))


def test_evaluations_need_the_run(tmp_path):
    path = tmp_path / "evals.yaml"
    path.write_text(yaml.safe_dump({"evals": {"a": {"command": ["evals", "vqa"], "minutes": 1, "columns": {}}}}))
    with pytest.raises(UserError, match=r"where the \{run\} goes"):
        read_evals(str(path))


@pytest.mark.parametrize("name", config_names(FOLDER))
def test_shipped_studies(name, tmp_path):
    """Read, their references are there, and each row's config is one that a run takes."""
    from pretrain.describe import parse

    study = load_study(name)
    tables = load_reference()
    for table, columns in study.reference.items():
        assert set(columns) <= set(study.columns)
        assert set(columns.values()) <= set(tables[table].columns)
    for row in study.rows[1:]:
        assert row.frozen or len(row.change) == 1 or (row.start and row.budget == "flops")
    assert study.claims, "a study says before it is run what it expects"
    for row in study.rows:
        if row.frozen is None:
            config = arm_of(study, row, seed=0).config
            file = tmp_path / f"{slug(row.name)}.yaml"
            file.write_text(yaml.safe_dump(dict(config)))
            module, _ = parse(["--config", str(file), "--max_samples", "24000"])
            module.objective_config.check()


def test_rivals_differ_from_the_base_in_objective_and_rate_alone():
    """Of the study of losses: same encoder, data, schedule and budget; the second batch size of CLIP is a row of its own."""
    study = load_study("loss_choice")
    base, _ = read_base(study.base)
    for row in study.rows[1:]:
        config = resolve(base, study.overrides(row))
        config["model"]["objective"] = base["model"]["objective"]
        config["model"]["optim"]["lr"] = base["model"]["optim"]["lr"]
        if row.name == "CLIP, batch 32":
            assert config["data"].pop("batch_size") == 32
            config["data"]["batch_size"] = base["data"]["batch_size"]
        assert config == base, row.name
        assert set(row.tuned) <= {"model.optim.lr"}, row.name


@pytest.mark.parametrize(
    "path", sorted(Path("configs/pretrain/rivals").glob("*_nano_*.yaml")), ids=lambda path: path.stem
)
def test_rivals_at_nano_size_differ_from_the_default_run_in_objective_and_rate(path):
    configs = [yaml.safe_load(one.read_text()) for one in (path, path.parents[1] / "aimv2_nano_scenes.yaml")]
    objective = configs[0]["model"]["objective"]
    for config in configs:
        config["model"].pop("objective")
        config["model"]["optim"].pop("lr")
    assert configs[0] == configs[1]
    # and the study's row is the same objective, but for the size of a decoder
    label = {"cap": "Cap", "cappa": "CapPa", "clip": "CLIP", "siglip": "SigLIP", "aimv1": "AIMv1", "mae": "MAE"}
    study = load_study("loss_choice")
    row = arm_of(study, study.row(label[path.stem.split("_")[0]]), seed=0).config["model"]["objective"]
    own, theirs = ({**AIMV2, **one, "decoder": None} for one in (objective, row))
    assert own == theirs


def plain(fields):
    """A part of a config without the place of its file."""
    found = fields.as_dict() if hasattr(fields, "as_dict") else fields
    return {name: value for name, value in found.items() if name != "__path__"}


def test_rivals_at_published_size_differ_from_aimv2_in_the_objective_alone():
    from pretrain.describe import parse

    configs = Path("configs/pretrain")
    recipe, _ = parse(["--config", str(configs / "recipes" / "aimv2_large_patch14_224.yaml")])
    kinds = set()
    for path in sorted((configs / "rivals").glob("*_large_patch14_224.yaml")):
        module, config = parse(["--config", str(path)])
        _, theirs = parse(["--config", str(configs / "recipes" / "aimv2_large_patch14_224.yaml")])
        assert asdict(module.encoder_config) == asdict(recipe.encoder_config)
        assert asdict(module.optim_config) == asdict(recipe.optim_config)
        for group in ("data", "trainer"):
            assert plain(config[group]) == plain(theirs[group]), (path, group)
        assert config.max_samples == theirs.max_samples
        kinds.add(path.stem.removesuffix("_large_patch14_224"))
    assert kinds == {"aimv1", "cap", "cappa", "clip", "mae", "siglip"}
    assert {path.stem for path in (configs / "rivals").glob("*_nano_scenes.yaml")} == {
        f"{kind}_nano_scenes" for kind in kinds
    }


def test_studies_share_what_they_train():
    """Both tables have one base and one row of random weights: each is done once a seed."""
    jobs = plan([load_study("objective"), load_study("decoder_ratio")], range(3))
    assert len(jobs) == 3 * 6
    assert [job.arm.seed for job in jobs] == [0] * 6 + [1] * 6 + [2] * 6
    studies = {name: load_study(name) for name in ("objective", "loss_choice")}
    rows = {"objective": ("patch only", "text only"), "loss_choice": ("AIMv1", "Cap")}
    for number in range(2):  # the same but for a rate that was tuned
        one, other = (arm_of(study, study.row(rows[name][number]), seed=0) for name, study in studies.items())
        tuned = studies["loss_choice"].row(rows["loss_choice"][number]).tuned
        assert (one.key == other.key) == (not tuned)


def test_keys_tell_arms_apart():
    study = load_study("loss_choice")
    keys = {row.name: arm_of(study, row, seed=0).key for row in study.rows}
    assert len(set(keys.values())) == len(keys)
    assert arm_of(study, study.rows[1], seed=5).key == keys[study.rows[1].name]


def test_the_study_in_the_readme_is_one(tmp_path):
    text = Path("README.md").read_text().split("```yaml\n")[1].split("```")[0]
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("my/base.yaml", "configs/benchmarks/base/ablation.yaml"))
    study = load_study(str(path))
    assert [row.name for row in study.rows] == ["patch + text", "patch only", "text only"]
    assert len(plan([study], range(2))) == 6
