"""Batches for detectors: the order, the draws, the workers, and what cannot be read."""

import io
import json
import pickle
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from evals.detection.canvas import CanvasTransform
from evals.detection.coco_set import CocoSet
from evals.detection.feeding import DetectionBatch, FaultCount, detection_loader
from pretrain.types import Fault, UserError

NUM, SIDE = 12, 16


@pytest.fixture
def dataset(tmp_path):
    """Twelve noisy pictures; picture k has k % 3 objects."""
    images, annotations = [], []
    for k in range(NUM):
        pixels = np.random.default_rng(k).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
        images.append({"id": 100 + k, "file_name": f"{k}.png", "width": SIDE, "height": SIDE})
        for n in range(k % 3):
            x, y = 2 * n, n
            polygon = [x, y, x + 8, y, x + 8, y + 9, x, y + 9]
            entry = {"id": 10 * k + n + 1, "image_id": 100 + k, "category_id": 1, "bbox": [x, y, 8, 9], "area": 72}
            annotations.append({**entry, "iscrowd": int(k == 5 and n == 1), "segmentation": [polygon]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return CocoSet(tmp_path / "instances.json", tmp_path, name="drawn", split="train")


def loader(dataset, *, plain=False, **options):
    transform = CanvasTransform(24) if plain else CanvasTransform(24, jitter=(0.5, 2.0), flip=True, seed=3)
    return detection_loader(dataset, np.arange(NUM), transform, **{"batch_size": 4, **options})


def ids(batches):
    return [[sample.image_id for sample in batch.samples] for batch in batches]


def assert_equal(first, second):
    assert [s.image_id for s in first.samples] == [s.image_id for s in second.samples]
    assert first.faults == second.faults
    for a, b in zip(first.samples, second.samples, strict=True):
        assert (a.content_hw, a.original_hw) == (b.content_hw, b.original_hw)
        for name in ("box_N4", "label_N", "mask_NHW", "crowd_M4"):
            assert torch.equal(getattr(a.objects, name), getattr(b.objects, name)), name
        assert torch.equal(a.image_CSS, b.image_CSS)


def test_a_batch(dataset):
    batches = list(loader(dataset, plain=True))
    assert ids(batches) == [[100, 101, 102, 103], [104, 105, 106, 107], [108, 109, 110, 111]]
    assert batches[0].image_BCSS.shape == (4, 3, 24, 24)
    assert batches[0].image_BCSS.dtype == torch.uint8
    assert [len(sample.objects) for sample in batches[0].samples] == [0, 1, 2, 0]
    fifth = batches[1].samples[1].objects  # 16 pixels on 24: 1.5 times as large
    assert fifth.box_N4.tolist() == [[0, 0, 12, 13.5]]
    assert fifth.crowd_M4.tolist() == [[3, 1.5, 15, 15]]
    image, _ = dataset.load(5)
    resized = image.resize((24, 24), Image.Resampling.BILINEAR)
    assert np.array_equal(batches[1].image_BCSS[1].permute(1, 2, 0), np.asarray(resized))
    assert len(list(loader(dataset, plain=True, batch_size=5))[2]) == 2


def test_the_order_is_a_function_of_seed_and_epoch(dataset):
    def order(seed, epoch):
        loading = loader(dataset, seed=seed)
        loading.sampler.set_epoch(epoch)
        return ids(loading)

    assert order(1, 2) == order(1, 2)
    assert sorted(chain.from_iterable(order(1, 2))) == list(range(100, 112))
    assert len({str(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1, 2)}) == 6


def test_going_on_in_epoch_two_is_the_unbroken_run(dataset):
    unbroken = loader(dataset, seed=1)
    for epoch in range(3):
        unbroken.sampler.set_epoch(epoch)
        expected = list(unbroken)
    resumed = loader(dataset, seed=1)
    resumed.sampler.set_epoch(2)
    for first, second in zip(expected, resumed, strict=True):
        assert_equal(first, second)
    resumed.sampler.set_epoch(1)
    again = {s.image_id: s for batch in resumed for s in batch.samples}
    before = {s.image_id: s for batch in expected for s in batch.samples}
    assert any(not torch.equal(again[k].image_CSS, before[k].image_CSS) for k in before)


def test_workers_change_nothing(dataset):
    dataset.file(2).write_bytes(b"broken")
    alone = list(loader(dataset, seed=1))
    for first, second in zip(alone, loader(dataset, seed=1, num_workers=2), strict=True):
        assert_equal(first, second)


def test_a_batch_travels_in_few_tensors(dataset):
    dataset.file(9).unlink()
    batches = [*loader(dataset), DetectionBatch([], [Fault("missing", "x.png")])]
    for batch in batches:
        assert_equal(batch, pickle.loads(pickle.dumps(batch)))
    # a picture of 3 x 24 x 24 bytes each, once, beside little else
    file = io.BytesIO()
    pickle.Pickler(file).dump(batches[0])
    objects = sum(len(sample.objects) for sample in batches[0].samples)
    assert len(file.getvalue()) < 4 * 3 * 24 * 24 + objects * 24 * 24 + 3000
    back = pickle.loads(pickle.dumps(batches[0]))
    storages = {sample.image_CSS.untyped_storage().data_ptr() for sample in back.samples}
    assert len(storages) == 1


def test_a_batch_moves(dataset):
    batch = next(iter(loader(dataset)))
    moved = batch.to("meta")
    objects = [sample.objects for sample in moved.samples]
    tensors = [t for o in objects for t in (o.box_N4, o.label_N, o.crowd_M4)] + [s.image_CSS for s in moved.samples]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    # masks are wanted as arrays
    assert {o.mask_NHW.device.type for o in objects} == {"cpu"}
    assert moved.faults is batch.faults


def test_boxes_without_masks(dataset):
    boxes_only = CocoSet(dataset.folder / "instances.json", dataset.folder, name="x", split="train", with_masks=False)
    batch = next(iter(loader(boxes_only, plain=True)))
    for other in (batch.to("cpu"), pickle.loads(pickle.dumps(batch))):
        assert [sample.objects.mask_NHW for sample in other.samples] == [None] * 4
        assert [len(sample.objects) for sample in other.samples] == [0, 1, 2, 0]


def test_unreadable_pictures_are_named_and_left_out(dataset):
    data = dataset.file(6).read_bytes()
    dataset.file(6).write_bytes(data[: len(data) // 2])  # truncated
    dataset.file(4).unlink()
    batch = list(loader(dataset))[1]
    assert [sample.image_id for sample in batch.samples] == [105, 107]
    assert [(fault.kind, fault.key) for fault in batch.faults] == [("missing", "4.png"), ("corrupt", "6.png")]
    assert len(batch) == 2


def test_a_batch_of_nothing_but_faults(dataset):
    for index in range(4):
        dataset.file(index).unlink()
    batch = next(iter(loader(dataset)))
    assert (len(batch), len(batch.faults)) == (0, 4)
    assert FaultCount("drawn train").usable(batch) is False


def batches_of(read, *, faults, name="x"):
    return DetectionBatch([None] * read, [Fault("corrupt", f"{name}{k}.png", "made so") for k in range(faults)])


def test_faults_are_bounded():
    # on the way: 5% of 1,000 pictures, even if few have been seen; at the end 5% of what there was
    count = FaultCount("drawn train")
    count.begin()
    assert count.usable(batches_of(10, faults=50))
    with pytest.raises(
        UserError, match=r"drawn train: 51 of 61 pictures could not be read, more than 5%; the last: y0.png \(corrupt: "
    ):
        count.usable(batches_of(0, faults=1, name="y"))
    count.begin()
    count.usable(batches_of(39, faults=1))
    count.usable(batches_of(20, faults=1, name="y"))
    count.usable(batches_of(0, faults=2, name="z"))
    with pytest.raises(UserError, match="drawn train: 4 of 63 pictures"):
        count.end()
    count.begin()
    count.usable(batches_of(95, faults=5))
    count.end()
    assert (count.num_read, len(count.faults)) == (95, 5)
    assert count.unreadable == {f"x{k}.png" for k in range(50)} | {"y0.png", "z0.png", "z1.png"}


def test_one_bad_picture_of_a_small_set_is_let_through():
    count = FaultCount("drawn test")
    count.usable(batches_of(7, faults=1))
    count.end()  # 1 of 8 is 12%, but the share is taken of 20 at least
