import pytest

from pretrain.run import checkpoint_path, point_latest, resolve_checkpoint
from pretrain.types import UserError


def test_latest_moves_in_one_step(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        link = point_latest(tmp_path / name)
        assert link.resolve() == (tmp_path / name).resolve()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "one", "two"]
    (tmp_path / "moved").mkdir()
    assert (tmp_path / "latest").readlink().name == "two", "relative, so that runs/ can be moved"


def test_a_folder_named_latest_is_not_overwritten(tmp_path):
    (tmp_path / "latest").mkdir()
    (tmp_path / "one").mkdir()
    with pytest.raises(UserError, match="not a link"):
        point_latest(tmp_path / "one")


def test_resolve_checkpoint(tmp_path):
    run = tmp_path / "a"
    assert resolve_checkpoint(run, None) is None
    with pytest.raises(UserError, match="there is no checkpoint"):
        resolve_checkpoint(run, "last")
    checkpoint_path(run).parent.mkdir(parents=True)
    checkpoint_path(run).touch()
    assert resolve_checkpoint(run, "last") == str(checkpoint_path(run))
    assert resolve_checkpoint(tmp_path / "b", str(checkpoint_path(run))) == str(checkpoint_path(run))
    with pytest.raises(UserError, match="already holds a run"):
        resolve_checkpoint(run, None)
