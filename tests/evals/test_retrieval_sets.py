import numpy as np
import pytest
from PIL import Image

from evals.text.evaluate import retrieval_job
from evals.text.retrieval_sets import RetrievalConfig, RetrievalSet, build_retrieval_set, load_retrieval_config
from pretrain.types import UserError


def made(captions, faults=()):
    config = RetrievalConfig("made", "shards", "val")
    keys = [f"p{index}" for index in range(len(captions))]
    return RetrievalSet(
        config, keys=keys, captions=captions, load=lambda index: Image.new("RGB", (4, 4)), faults=list(faults)
    )


def test_same_captions_are_one_text():
    texts, own = made([["A dog.", "a cat"], ["a  dog.", "a dog."], ["a fox"]]).texts()
    assert texts == ["A dog.", "a cat", "a fox"]
    assert own == [[0, 1], [0], [2]]


def test_retrieval_by_hand():
    job = retrieval_job(made([["dog", "cat"], ["dog"], ["fox"], ["owl"]]))
    # pictures 0 and 1 share "dog"; picture 3 could not be read, so that its row and "owl" are out
    similarity = np.array([[0.2, 0.1, 0.9, 9.9], [0.8, 0.3, 0.1, 9.9], [0.5, 0.4, 0.6, 9.9]])
    scores = {score.metric: score for score in job.score(similarity, np.array([0, 1, 2]))}
    # pictures: 0 finds fox first, dog second; 1 finds dog; 2 finds fox
    assert scores["image_to_text_recall@1"].value == pytest.approx(200 / 3)
    assert scores["image_to_text_recall@5"].value == 100
    # texts: dog finds picture 1, which has it too; cat finds 2, then 1, then 0; fox finds 0 first
    assert scores["text_to_image_recall@1"].value == pytest.approx(100 / 3)
    # chance at 1: dog 2/3, cat 1/3, fox 1/3; pictures: 2/3, 1/3, 1/3
    assert scores["text_to_image_recall@1"].chance == pytest.approx(400 / 9)
    assert scores["image_to_text_recall@1"].chance == pytest.approx(400 / 9)
    assert {score.n for score in scores.values()} == {3}
    assert tuple(scores) == job.metrics


def test_scenes_say_what_they_show():
    config = load_retrieval_config("scenes")
    pictures = build_retrieval_set(config, img_size=32, num=20, seed=0)
    assert len(pictures) == 20
    assert pictures.synthetic
    assert pictures.load(0).size == (32, 32)
    assert all(len(captions) == 1 and captions[0].startswith(("a ", "an ")) for captions in pictures.captions)
    again, other = (build_retrieval_set(config, img_size=32, num=20, seed=seed) for seed in (0, 1))
    assert pictures.identity() == again.identity()
    assert not set(pictures.keys) & set(other.keys)


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "count"), [("flickr1k", 125), ("coco", 79)])
def test_photographs_with_five_captions(shared_data, name, count):
    folder = {"flickr1k": "flickr1k", "coco": "coco_mini"}[name]
    config = load_retrieval_config(name, str(shared_data / folder))
    pictures = build_retrieval_set(config, img_size=32, num=None, seed=0)
    assert len(pictures) == count
    assert not pictures.synthetic
    assert all(len(captions) >= 5 for captions in pictures.captions)
    texts, _ = pictures.texts()
    assert 4.5 * count < len(texts) <= sum(map(len, pictures.captions))
    part = build_retrieval_set(config, img_size=32, num=10, seed=0)
    place = pictures.keys.index(part.keys[3])
    assert part.captions[3] == pictures.captions[place]
    assert np.array_equal(np.asarray(part.load(3)), np.asarray(pictures.load(place)))
    assert part.keys != build_retrieval_set(config, img_size=32, num=10, seed=1).keys


def test_pictures_without_captions_are_counted(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "c.json").write_text(
        '{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}, {"id": 3, "file_name": "c.jpg"}],'
        ' "annotations": [{"image_id": 1, "caption": "one"}, {"image_id": 3, "caption": "three"}]}'
    )
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{name}.jpg")
    config = RetrievalConfig("c", "coco", "val", path=str(tmp_path), annotations="c.json", images="images")
    pictures = build_retrieval_set(config, img_size=8, num=None, seed=0)
    assert pictures.keys == ["a.jpg"]
    assert [(fault.kind, fault.key) for fault in pictures.faults] == [("bad_caption", "b.jpg"), ("missing", "c.jpg")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("kind: shards", "field 'split' must be there"),
        ("kind: tables\nsplit: val", "kind: 'tables' is unknown; known are scenes, shards, coco"),
        ("kind: coco\nsplit: val\npath: x", "kind coco needs the field 'annotations'"),
        ("kind: shards\nsplit: val", "needs the field 'path'"),
        ("kind: shards\nsplit: val\nurl: x", "field 'url' is unknown"),
        ("kind: scenes\nsplit: test\nlevels: {one: 1}", "styles: none given"),
        ("kind: scenes\nsplit: test\nlevels: {one: 1}\nstyles: [long]", "'long'"),
        ("kind: scenes\nsplit: test\nlevels: {two_and_a_half: 1}\nstyles: [short]", "two_and_a_half"),
    ],
)
def test_bad_configs(content, message, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load_retrieval_config(str(path))
    assert "\n" not in str(error.value)
