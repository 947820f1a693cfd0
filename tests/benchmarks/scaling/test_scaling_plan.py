from pathlib import Path

import pytest

from benchmarks.scaling.config import load_scaling
from benchmarks.scaling.plan import Trunk, branch_points, estimate_s, make_plan, stride
from pretrain.types import UserError

FOLDER = Path("runs/scaling/x")


def test_branch_points_by_hand(study):
    config = load_scaling(str(study))
    # 160, 320, 640 samples are 10, 20, 40 steps of 16; the last fifth of each is cool-down: 8, 16, 32
    assert branch_points(config, 16) == [(8, 10), (16, 20), (32, 40)]
    assert stride([8, 16, 32]) == 8


def test_the_shipped_study_by_hand():
    config = load_scaling("nano")
    assert [start for start, _ in branch_points(config, 16)] == [160, 320, 640, 1280, 2560]
    assert [trunk.job.steps for trunk in make_plan(config, seeds=1, folder=FOLDER)] == [2560] * 4


def test_the_published_study_by_hand():
    config = load_scaling("published")
    trunk = make_plan(config, seeds=1, folder=FOLDER)[0]
    # the batch is 128 devices x 64; the trunk of 6.4 billion samples ends at 5.12 billion
    assert trunk.job.batch == 8192
    assert trunk.job.steps * 8192 == 5_120_000_000
    assert "--keep.every_n_steps=25000" in trunk.job.arguments


def test_commands(study, tmp_path):
    plan = make_plan(load_scaling(str(study)), seeds=2, folder=tmp_path / "runs")
    assert [(trunk.job.size, trunk.job.seed) for trunk in plan] == [("w8", 0), ("w8", 1), ("w16", 0), ("w16", 1)]
    trunk, branch = plan[3].job, plan[3].branches[1]
    assert {"--trainer.max_steps=32", "--model.optim.schedule=half_cosine", "--keep.every_n_steps=8"} < set(
        trunk.arguments
    )
    assert {"--seed_everything=1", "--max_samples=null", "--model.encoder.embed_dim=16"} < set(trunk.arguments)
    assert {"--trainer.max_steps=20", "--model.optim.schedule=cooldown", "--model.optim.min_lr=1e-06"} < set(
        branch.arguments
    )
    assert f"--branch_from={trunk.run}/checkpoints/step_0000016.ckpt" in branch.arguments
    assert branch.samples == 4 * 16
    assert len({job.run for one in plan for job in (one.job, *one.branches)}) == 16


def test_hashes_follow_what_decides_the_outcome(study, tmp_path):
    def hashes(text):
        study.write_text(text)
        trunk = make_plan(load_scaling(str(study)), seeds=1, folder=tmp_path)[0]
        return trunk.job.config_hash, [one.config_hash for one in trunk.branches]

    before = study.read_text()
    trunk, branches = hashes(before)
    other_trunk, others = hashes(before + "min_lr: 1.0e-5\n")
    assert other_trunk == trunk
    assert not set(others) & set(branches)
    # a smaller budget more: what was there stays as it was
    more_trunk, more = hashes(before.replace("[160,", "[80, 160,"))
    assert more_trunk == trunk
    assert more[1:] == branches
    assert hashes(before.replace("embed_dim: 8}", "embed_dim: 12}"))[0] != trunk
    assert hashes(before.replace("640]", "1280]"))[0] != trunk


def test_estimate_by_hand(study, tmp_path):
    plan = make_plan(load_scaling(str(study)), seeds=1, folder=tmp_path)
    speeds = {"w8": 100.0, "w16": 50.0}
    # a trunk of 512 samples, cool-downs of 32, 64, 128: 7.36 s and 14.72 s, and 15 s for each of the 8 starts
    assert estimate_s(plan, speeds=speeds, workers=1) == pytest.approx(7.36 + 14.72 + 8 * 15)
    # with many workers: the slower trunk and its longest branch
    assert estimate_s(plan, speeds=speeds, workers=99) == pytest.approx((512 + 128) / 50 + 2 * 15)
    assert estimate_s(plan, speeds={"w8": 100.0, "w16": None}, workers=1) is None
    assert estimate_s([Trunk(plan[0].job, plan[0].branches)], speeds=speeds, workers=1) == pytest.approx(7.36 + 4 * 15)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[160, 320, 640]", "[160, 330]", "330 is no multiple of a step's 16 samples; 320 is"),
        ("[160, 320, 640]", "[16, 320]", "16 is 1 steps, too few"),
        ("[160, 320, 640]", "[320, 160]", "must rise"),
        ("[160, 320, 640]", "[160, 16160]", "larger common divisor"),
        ("title: small", "titel: small", "'titel' is unknown"),
        ("title: small", "title: small\ncooldown: 20", "cooldown is 20"),
        ("title: small", "title: small\ncommon: {data.batch_size: many}", "data.batch_size is 'many'"),
        ("title: small", "title: small\ncommon: {model.optim.warmup_samples: 128}", "within its warm-up of 8"),
        ("w16:", "W 16:", "a size names folders"),
        ("imgs_per_s: 50", "imgs_per_s: -1", "imgs_per_s is -1"),
        ("imgs_per_s: 50", "speed: 50", "must be a mapping of change"),
    ],
)
def test_what_cannot_be_meant(study, tmp_path, old, new, message):
    text = study.read_text()
    assert old in text
    study.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        make_plan(load_scaling(str(study)), seeds=1, folder=tmp_path)
