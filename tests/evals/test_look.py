import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from evals import look
from evals.data.labelled import BadSample, LabelledSet
from evals.encoder import Features, Provenance, TokenEncoder
from evals.look_features import (
    attention_maps,
    class_agreement,
    nearest,
    patch_colours,
    spread_over_classes,
)
from evals.look_page import Page, Tile, draw_page, heat, upscale, write_page
from evals.probe.heads import HeadConfig, build_head, save_head
from evals.transforms import ImageTransform
from pretrain.types import Fault, ImageSpec, UserError

SIZE, PATCH, WIDTH = 8, 2, 12


class PixelEncoder(TokenEncoder):
    """Tokens are the patches' own pixels, and two tokens of ones stand in front of them."""

    def __init__(self, objective="random"):
        super().__init__()
        self.transform = ImageTransform(ImageSpec(SIZE, mean=(0, 0, 0), std=(1, 1, 1)))
        self.provenance = Provenance("random:tiny", "pixels", objective)
        self.embed_dim = WIDTH

    def grid(self, height, width):
        return height // PATCH, width // PATCH

    def forward(self, image_BCHW):
        tokens = torch.nn.functional.unfold(image_BCHW, PATCH, stride=PATCH).transpose(1, 2)
        return Features(tokens, torch.ones(len(tokens), 2, WIDTH))


class Colours(LabelledSet):
    """Plain pictures: two classes, reds and blues; picture 3 cannot be read."""

    name, split, classes, synthetic = "plain", "test", ("red", "blue"), True

    def __init__(self, count=12, *, bad=(3,)):
        self.label_N, self.bad = np.arange(count) % 2, bad

    def load(self, index):
        if index in self.bad:
            raise BadSample(Fault("corrupt", self.key(index), "cut off"))
        level = 100 + 10 * index
        return Image.new("RGB", (SIZE, SIZE), (level, 20, 20) if index % 2 == 0 else (20, 20, level))

    def key(self, index):
        return f"p{index}"

    def pictures_identity(self):
        return "plain"


def test_colours_are_the_components_of_all_patches_together():
    """Against an eigendecomposition of the covariance, written anew here."""
    tokens_BND = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    tokens_BND *= torch.tensor([9.0, 4, 2, 1, 0.5])
    found = patch_colours(tokens_BND.float(), grid=(2, 3))
    flat = tokens_BND.float().double().reshape(12, 5).numpy()
    flat = flat - flat.mean(0)
    values, vectors = np.linalg.eigh(flat.T @ flat)
    order = np.argsort(values)[::-1][:3]
    assert found.variance_3 == pytest.approx(values[order] / values.sum())
    for channel, component in enumerate(order):
        vector = vectors[:, component]
        vector = vector * np.sign(vector[np.abs(vector).argmax()])  # its largest entry is positive
        projected = flat @ vector
        low, high = np.percentile(projected, [1, 99])
        expected = np.clip((projected - low) / (high - low), 0, 1)
        np.testing.assert_allclose(found.rgb_BRC3[..., channel].reshape(-1), expected, atol=1e-9)


def test_colours_do_not_depend_on_the_order_of_pictures():
    tokens_BND = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(1))
    there, back = (patch_colours(t, grid=(2, 2)).rgb_BRC3 for t in (tokens_BND, tokens_BND.flip(0)))
    np.testing.assert_allclose(there, back[::-1], atol=1e-6)


def test_equal_patches_are_grey_and_a_few_components_leave_the_rest_grey():
    found = patch_colours(torch.ones(2, 4, 6), grid=(2, 2))
    assert (found.rgb_BRC3 == 0.5).all()
    assert (found.variance_3 == 0).all()
    narrow = patch_colours(torch.tensor([[[0.0, 0], [1, 0], [2, 0], [3, 0]]]), grid=(2, 2))  # D = 2, on a line
    assert narrow.variance_3 == pytest.approx([1, 0, 0])
    assert (narrow.rgb_BRC3[..., 2] == 0.5).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_foreground_is_the_side_away_from_the_edge_whatever_its_sign(sign):
    # 4 x 4 patches: the middle 2 x 2 is far from the rest along one axis, with a little else on others
    tokens = 0.1 * torch.randn(1, 4, 4, 5, generator=torch.Generator().manual_seed(0))
    tokens[0, 1:3, 1:3, 0] += 10 * sign
    found = patch_colours(tokens.flatten(1, 2), grid=(4, 4), foreground=True)
    expected = np.zeros((1, 4, 4), bool)
    expected[0, 1:3, 1:3] = True
    assert (found.foreground_BRC == expected).all()
    assert (found.rgb_BRC3[~expected] == 0).all()
    assert found.rgb_BRC3[expected].max() == 1


def test_tokens_that_do_not_fill_the_grid():
    with pytest.raises(UserError, match="5 patch tokens do not fill a grid of 2 x 2"):
        patch_colours(torch.ones(1, 5, 3), grid=(2, 2))
    with pytest.raises(UserError, match="3 tokens do not fill a grid of 2 x 2"):
        attention_maps(lambda t: t, torch.ones(1, 3, 3), grid=(2, 2))


def test_attention_maps_leave_out_prefix_tokens_and_count_them():
    # two heads over 1 class token and 2 x 3 patches, in sixteenths
    weight = torch.tensor([[[4, 1, 2, 3, 1, 2, 3], [10, 1, 1, 1, 1, 1, 1]]]) / 16
    found = attention_maps(lambda tokens: weight, torch.ones(1, 7, 5), grid=(2, 3))
    assert (found.weight_BHRC[0, 0] * 16).tolist() == [[1, 2, 3], [1, 2, 3]]
    assert found.prefix_share_B.tolist() == [7 / 16]
    assert (found.mean_BRC[0] * 16).tolist() == [[1, 1.5, 2], [1, 1.5, 2]]
    assert found.mean_BRC.sum() + found.prefix_share_B[0] == pytest.approx(1)


def test_attention_of_another_shape():
    with pytest.raises(UserError, match=r"the shape \(1, 4\); it must be \[1, heads, 4\]"):
        attention_maps(lambda tokens: torch.ones(1, 4), torch.ones(1, 4, 5), grid=(2, 2))


def _angles(*degrees):
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def test_nearest_by_hand():
    # lengths do not count: only angles do
    summary = _angles(0, 10, 30, 90) * torch.tensor([[1.0], [9], [0.1], [3]])
    found = nearest(summary, query_Q=np.array([0, 2]), k=2)
    assert found.index_QK.tolist() == [[1, 2], [1, 0]]
    expected = [[math.cos(math.radians(d)) for d in row] for row in ([10, 30], [20, 30])]
    np.testing.assert_allclose(found.cosine_QK, expected, atol=1e-6)
    blocks = nearest(summary, query_Q=np.array([0, 2]), k=2, block=1)
    assert (blocks.index_QK == found.index_QK).all()
    with pytest.raises(UserError, match="4 neighbours cannot be found among 4 pictures: give at least 5"):
        nearest(summary, query_Q=np.array([0]), k=4)


def test_class_agreement_by_hand():
    # nearest of 0, 10, 30, 90 degrees: 10, 0, 10, 30; classes a a b b: right, right, wrong, right
    # chance: each has one other of its class among three
    found = class_agreement(_angles(0, 10, 30, 90), np.array([0, 0, 1, 1]), k=1)
    assert (found.same, found.chance, found.n, found.k) == (0.75, pytest.approx(1 / 3), 4, 1)


def test_shown_pictures_take_classes_in_turn():
    # the first of class 0, 1, 2, then the second of 0
    assert spread_over_classes(np.array([2, 2, 0, 0, 1]), num=4, count=5).tolist() == [2, 4, 0, 3]
    assert spread_over_classes(None, num=3, count=5).tolist() == [0, 1, 2]


def test_upscaled_patches_are_flat_rectangles():
    assert upscale(np.array([[1, 2], [3, 4]]), 4).tolist() == [[1, 1, 2, 2]] * 2 + [[3, 3, 4, 4]] * 2
    assert upscale(np.array([[1, 2]]), 3).tolist() == [[1, 1, 2]] * 3


def test_heat_is_brightest_where_the_weight_is():
    picture = np.full((8, 8, 3), 90, np.uint8)
    weight = np.full((2, 2), 0.05)
    weight[1, 0] = 0.85
    drawn = heat(picture, weight).astype(int).sum(-1)
    assert drawn[4:, :4].min() > drawn[:, 4:].max()
    # no preference: one even tone, darker than a peak is
    even = heat(picture, np.full((2, 2), 0.25)).astype(int).sum(-1)
    assert even.min() == even.max() < drawn.max()


def _page(**options):
    tile = Tile(np.zeros((8, 8, 3), np.uint8), "a $name$")
    tokens = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    near = [[Tile(tile.image_SS3, "red", True), Tile(tile.image_SS3, "blue", False)]] * 2
    colours = patch_colours(tokens, grid=(2, 2))
    return Page("tiny, random weights", "plain: synthetic pictures", [tile] * 2, colours, near, **options)


def _texts(figure):
    return [text.get_text() for text in figure.texts]


def test_page_has_a_panel_for_everything():
    maps = attention_maps(lambda t: torch.full((2, 3, 4), 0.25), torch.ones(2, 4, 5), grid=(2, 2))
    plain, probed = draw_page(_page()), draw_page(_page(attention=maps, each_head=True, notes=["12% right"]))
    assert len(plain.axes) == 2 * (2 + 2)  # picture, colours and two neighbours of each
    assert len(probed.axes) == 2 * (3 + 2) + 2 * 3  # an attention map each, and one a head
    texts = _texts(probed)
    for wanted in ("tiny, random weights", "plain: synthetic pictures", "✓ red", "✗ blue", "head 3", "12% right"):
        assert wanted in texts
    assert r"a \$name\$" in texts  # no formula


def test_nothing_on_a_page_lies_on_or_beyond_something_else():
    maps = attention_maps(lambda t: torch.full((2, 3, 4), 0.25), torch.ones(2, 4, 5), grid=(2, 2))
    figure = draw_page(_page(attention=maps, each_head=True, notes=["one", "two"]))
    boxes = [axis.get_position() for axis in figure.axes]
    boxes += [t.get_window_extent().transformed(figure.transFigure.inverted()) for t in figure.texts]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0, number
        assert box.y0 >= 0, number
        assert box.x1 <= 1, number
        assert box.y1 <= 1, number
        assert not any(box.overlaps(other) for other in boxes[:number]), number


def test_written_page_is_a_png_of_readme_width(tmp_path):
    path = write_page(_page(), tmp_path / "new" / "page.png")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 850 <= image.width <= 1400
    assert [file.name for file in path.parent.iterdir()] == ["page.png"]


@pytest.fixture
def named(monkeypatch):
    """The command with this file's encoder and data set behind every name."""
    monkeypatch.setattr(look, "load_or_train", lambda spec, *, seed: PixelEncoder())
    dataset = Colours()
    monkeypatch.setattr(look, "open_album", lambda *args, **options: look.Album.of_set(dataset))
    return dataset


ARGS = ["--num", "2", "--neighbours", "2"]


def test_command_writes_a_page_and_its_numbers_for_each_encoder(named, tmp_path, capsys):
    assert look.main([*ARGS, "--encoder", "runs/a", "random:runs/a", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "plain_random-runs-a.json",
        "plain_random-runs-a.png",
        "plain_runs-a.json",
        "plain_runs-a.png",
    ]
    numbers = json.loads((tmp_path / "plain_runs-a.json").read_text())
    assert numbers["gallery"] == 11
    assert numbers["unreadable"] == [{"kind": "corrupt", "key": "p3", "detail": "cut off"}]
    # reds are nearest to reds; 6 reds and 5 blues: (6 * 5 + 5 * 4) / (11 * 10)
    assert numbers["agreement"] == {"same": 1.0, "chance": pytest.approx(50 / 110), "k": 2, "n": 11}
    assert list(numbers["neighbours"]) == ["p0", "p1"]
    # of the reds, the darkest but p0 are most like p0
    assert [key for key, _ in numbers["neighbours"]["p0"]] == ["p2", "p4"]
    out = capsys.readouterr().out
    assert "100.0% have its class (chance 45.5%); 1 unreadable pictures left out" in out
    assert "synthetic pictures" in out
    assert str(tmp_path / "plain_runs-a.png") in out


def test_default_is_the_last_run_and_its_random_twin(named, tmp_path):
    assert look.main([*ARGS, "--out", str(tmp_path)]) == 0
    assert {path.stem for path in tmp_path.glob("*.png")} == {"plain_runs-latest", "plain_random-runs-latest"}


def test_probe_is_shown_with_what_it_gives_to_prefix_tokens(named, tmp_path, capsys):
    head = build_head(WIDTH, 2, HeadConfig(num_heads=2, batch_norm=False))
    torch.nn.init.zeros_(head.query)  # looks at all 2 + 16 tokens alike
    save_head(head, tmp_path / "head.safetensors", classes=["red", "blue"])
    args = ["--probe", str(tmp_path / "head.safetensors"), "--each-head", "--out", str(tmp_path)]
    assert look.main([*ARGS, *args, "--encoder", "runs/a"]) == 0
    assert json.loads((tmp_path / "plain_runs-a.json").read_text())["prefix_attention"] == pytest.approx([2 / 18] * 2)
    assert "11.1% of it lies on class and register tokens" in capsys.readouterr().out


def test_probe_of_another_width_or_kind(tmp_path):
    for name, kind in (("a", "attentive"), ("l", "linear")):
        save_head(build_head(8, 2, HeadConfig(kind=kind, num_heads=2)), tmp_path / name, classes=["x", "y"])
    with pytest.raises(UserError, match="fitted on features 8 wide, this encoder's are 12 wide"):
        look.load_attention(tmp_path / "a")(torch.ones(1, 4, 12))
    with pytest.raises(UserError, match="LinearHead has no attention"):
        look.load_attention(tmp_path / "l")
    with pytest.raises(UserError, match="absent"):
        look.load_attention(tmp_path / "absent")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--num", "0"], "--num=0 must be at least 1"),
        (["--neighbours", "0"], "--neighbours=0 must be at least 1"),
        (["--gallery", "5"], "--gallery=5 must be at least 6 to show 2 pictures with 5 neighbours each"),
        (["--each-head"], "--each-head shows a probe's attention"),
        (["--neighbours", "11"], "11 neighbours cannot be found among 11 pictures"),
    ],
)
def test_bad_options_are_one_line(named, tmp_path, capsys, args, message):
    assert look.main(["--num", "2", *args, "--out", str(tmp_path), "--encoder", "runs/a"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("error:") == 1
    assert not list(tmp_path.iterdir())


def test_no_readable_picture(named, tmp_path, capsys):
    named.bad = range(12)
    assert look.main([*ARGS, "--out", str(tmp_path), "--encoder", "runs/a"]) == 2
    assert "plain: none of 12 pictures can be read; the first: cut off" in capsys.readouterr().err


def test_folder_of_photographs(tmp_path, monkeypatch):
    monkeypatch.setattr(look, "load_or_train", lambda spec, *, seed: PixelEncoder())
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(5):
        Image.new("RGB", (20, 10 + index), (40 * index, 50, 90)).save(folder / f"{index}.png")
    args = ["--encoder", "x", "--data", str(folder), "--out", str(tmp_path / "out"), *ARGS]
    assert look.main(args) == 0
    numbers = json.loads((tmp_path / "out" / "photos_x.json").read_text())
    assert (numbers["dataset"], numbers["agreement"], numbers["gallery"]) == ("photos", None, 5)


def test_page_names_are_file_names():
    assert look.page_name("/abs/run", "a b") == "a-b_abs-run"
    assert look.page_name("timm:vit[img_size=32]@f/w.bin", "c") == "c_timm-vit-img_size-32-f-w.bin"


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        look.open_album(None, str(tmp_path / "absent"), img_size=8)


def test_scenes_by_default():
    album = look.open_album(None, None, img_size=16)
    assert album.name == "scenes_shape"
    assert "synthetic" in album.about
    assert album.load(0)[0].size == (16, 16)
