"""Configs of data sets: every one in configs/, and what is wrong with bad ones."""

import pytest
import yaml
from PIL import Image

from evals.data.config import FOLDER, DatasetConfig, build_set, dataset_names, load_dataset_config
from evals.scenes import EVAL_SEED, PROBE_START
from pretrain.data.scenes import LEVELS
from pretrain.types import UserError

#: By hand from the reference, section 6: train, test, classes.
PAPER = {
    "imagenet1k": (1_281_167, 50_000, 1000),
    "inaturalist2018": (437_513, 24_426, 8142),
    "cifar10": (50_000, 10_000, 10),
    "cifar100": (50_000, 10_000, 100),
    "food101": (75_750, 25_250, 101),
    "dtd": (3_760, 1_880, 47),
    "pets": (3_680, 3_669, 37),
    "cars": (8_144, 8_041, 196),
    "camelyon17": (302_436, 34_904, 2),
    "pcam": (262_144, 32_768, 2),
    "rxrx1": (40_612, 9_854, 1139),
    "eurosat": (16_200, 5_400, 10),
    "fmow": (76_863, 19_915, 62),
    "infograph": (36_023, 15_582, 345),
}
OTHERS = {
    "imagenet1k_parquet": PAPER["imagenet1k"],
    "imagenet1k_shards": PAPER["imagenet1k"],
    "cifar10_parquet": PAPER["cifar10"],
    "folders": (None, None, None),
    "scenes_shape": (20_000, 4_000, 8),
    "scenes_shape_color": (20_000, 4_000, 64),
}
FOLDERS = {
    "name": "mine",
    "kind": "folders",
    "path": "somewhere",
    "train": "train",
    "test": "test",
    "num_train": None,
    "num_test": None,
    "num_classes": None,
    "split_rule": "by folder",
    "source": "me",
    "license": "mine",
}


def written(tmp_path, **changes) -> str:
    content = {name: value for name, value in (FOLDERS | changes).items() if value != "left out"}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_every_config_is_known_here():
    assert set(dataset_names()) == set(PAPER) | set(OTHERS)


@pytest.mark.parametrize("name", sorted(PAPER | OTHERS))
def test_shipped_configs_have_the_papers_sizes_and_protocol(name):
    config = load_dataset_config(name)
    assert config.name == name
    assert (config.num_train, config.num_test, config.num_classes) == (PAPER | OTHERS)[name]
    is_imagenet = name.startswith("imagenet1k")
    assert (config.batch_size, config.warmup_epochs) == ((1024, 5) if is_imagenet else (512, 0))
    assert config.metric == "top1"
    assert config.check_sizes
    assert (config.synthetic, config.augment) == (
        (True, "none") if name.startswith("scenes_") else (False, "published")
    )
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text.startswith("#"), "the split rule and the source of the sizes stand in a comment"
    assert {"split_rule", "source", "license"} <= yaml.safe_load(text).keys()


@pytest.mark.parametrize("name", [name for name in sorted(PAPER | OTHERS) if not name.startswith("scenes_")])
def test_a_missing_set_is_one_line_that_names_the_place(name, tmp_path):
    config = load_dataset_config(name, path=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere") as error:
        build_set(config, "train", img_size=32)
    assert str(error.value).startswith(f"{name}: ")
    assert "DATA=" in str(error.value)
    assert "\n" not in str(error.value)


def test_scenes_begin_where_the_other_evaluation_does():
    shape, both = (load_dataset_config(name) for name in ("scenes_shape", "scenes_shape_color"))
    for config in (shape, both):
        assert (config.seed, config.train, config.train_start) == (EVAL_SEED, "val", PROBE_START)
        assert (config.test, config.test_start) == ("test", 0)
        assert config.levels == list(LEVELS)
    assert (shape.target, both.target) == ("shape", "shape_color")


def test_the_probes_training_splits_are_the_published_ones():
    """DTD: reference 3,760 = train + val; EuroSAT: 60% and 20% of 27,000."""
    assert (load_dataset_config("dtd").train, load_dataset_config("dtd").test) == ("train+val", "test")
    eurosat = load_dataset_config("eurosat")
    assert (eurosat.train, eurosat.test) == ("0%-60%", "80%-100%")
    assert (eurosat.num_train, eurosat.num_test) == (27_000 * 60 // 100, 27_000 * 20 // 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_trian": 3}, r"mine.yaml: field 'num_trian' is unknown \(did you mean 'num_train'"),
        ({"num_train": "many"}, "num_train='many' is wrong; it must be a whole number or null"),
        ({"num_train": True}, "num_train=True is wrong"),
        ({"num_train": 0}, "num_train=0 must be at least 1"),
        ({"num_classes": 1}, "num_classes=1 must be at least 2"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"kind": "folder"}, "kind='folder' is wrong; it must be 'imagenet' or 'folders'"),
        ({"metric": "f1"}, "metric='f1' is wrong; it must be 'top1'"),
        ({"classes": [1, 2]}, "classes=.* is wrong; it must be a list of texts or text or null"),
        ({"split_rule": "left out", "license": "left out"}, "split_rule, license must be given"),
        ({"path": None}, "path is needed with kind folders"),
        ({"levels": ["one"]}, "levels=.* is not used by kind folders"),
        ({"kind": "torchvision"}, "torchvision is needed with kind torchvision"),
        ({"kind": "table", "image": "{x}"}, "label is needed with kind table"),
        ({"kind": "table", "image": "{x}", "label": "y", "delimiter": ", "}, "delimiter=', ' must be one character"),
        (
            {"kind": "table", "image": "{x}", "label": "y", "train_rows": {"x": {"to": 3}}},
            "train_rows.x: {'to': 3} is no range",
        ),
        ({"kind": "table", "image": "{x}", "label": "y", "test_rows": {"x": None}}, "test_rows.x is empty"),
        (
            {"kind": "scenes", "path": None, "levels": ["one"], "target": "shape"},
            "num_train and num_test are needed with kind scenes",
        ),
        ({"kind": "scenes", "levels": ["one"], "target": "shape"}, "path='somewhere' is not used by kind scenes"),
    ],
)
def test_bad_configs(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        load_dataset_config(written(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_names_and_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match=r"'imagnet1k' is unknown \(did you mean 'imagenet1k'"):
        load_dataset_config("imagnet1k")
    with pytest.raises(UserError, match=r"gone.yaml cannot be read"):
        load_dataset_config(str(tmp_path / "gone.yaml"))
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(UserError, match=r"list.yaml: holds list, not fields"):
        load_dataset_config(str(tmp_path / "list.yaml"))
    (tmp_path / "broken.yaml").write_text("a: [\n")
    with pytest.raises(UserError, match=r"broken.yaml cannot be read") as error:
        load_dataset_config(str(tmp_path / "broken.yaml"))
    assert "\n" not in str(error.value)


def test_the_users_place_and_sizes(tmp_path):
    config = load_dataset_config("imagenet1k", path="/there", allow_sizes=True)
    assert (config.path, config.check_sizes) == ("/there", False)
    assert load_dataset_config(written(tmp_path)).path == "somewhere"
    with pytest.raises(UserError, match="scenes_shape is generated and lies nowhere"):
        load_dataset_config("scenes_shape", path="/there")


def test_other_numbers_of_classes_and_pictures(tmp_path):
    for name in ("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (3, 3)).save(tmp_path / name)
    (tmp_path / "names.txt").write_text("b\na\n")

    def build(**changes):
        config = load_dataset_config(written(tmp_path, **({"path": str(tmp_path)} | changes)))
        return build_set(config, "test", img_size=32)

    assert build(num_classes=2, num_train=9, num_test=2).classes == ("a", "b")
    assert build(classes="names.txt").label_N.tolist() == [0, 1]
    assert build(classes="names.txt").classes == ("b", "a")
    assert len(build(num_test=3, check_sizes=False)) == 2
    with pytest.raises(UserError, match="mine: 2 classes are there, 3 are expected"):
        build(num_classes=3)
    with pytest.raises(UserError, match=r"mine: its test split has 2 pictures in .*, 3 are expected; .*--allow_sizes"):
        build(num_test=3)
    with pytest.raises(UserError, match=r"classes: .*name.txt' cannot be read"):
        build(classes="name.txt")


def test_configs_are_frozen():
    with pytest.raises(AttributeError):
        load_dataset_config("cifar10").path = "x"
    assert DatasetConfig.__dataclass_params__.frozen
