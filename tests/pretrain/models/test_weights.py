"""Weights to start from: every layout, single files and shards, resampled positions, and what is refused."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import checkpoint_filter_fn

from pretrain.models.layouts import HF_PREFIX, detect_layout, names_in, to_layout
from pretrain.models.vision import EncoderConfig, build_encoder
from pretrain.models.weights import find_weights, load_weights, read_tensors
from pretrain.types import UserError

TINY = EncoderConfig(embed_dim=32, depth=2, num_heads=4, mlp_hidden_dim=64, img_size=16)
LAYOUTS = ("timm", "aim", "hf")


def random_encoder(seed=1, **changes):
    torch.manual_seed(seed)
    encoder = build_encoder(EncoderConfig(**{**vars(TINY), **changes}))
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return encoder


def load(encoder, path, config=TINY):
    load_weights(encoder, path, image=config.image_spec())


def save_in(layout, folder, encoder=None):
    """A file of random weights in a layout; the encoder they come from."""
    encoder = encoder or random_encoder()
    tensors = {name: tensor.contiguous() for name, tensor in to_layout(encoder.state_dict(), layout).items()}
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return encoder


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip(layout, tmp_path):
    source, target = save_in(layout, tmp_path), random_encoder(2)
    assert not equal(source, target)
    load(target, tmp_path)
    assert equal(source, target)
    load(other := random_encoder(3), tmp_path / "model.safetensors")
    assert equal(source, other)


def test_names_of_the_layouts_are_distinct():
    names = random_encoder().state_dict()
    for layout in LAYOUTS:
        theirs = [other for name in names for other in names_in(layout, name)]
        assert len(set(theirs)) == len(theirs)
        assert detect_layout(theirs) == (layout, "")
    assert detect_layout(["classifier.weight"]) is None
    assert names_in("aim", "cls_token") == names_in("hf", "blocks.0.attn.qkv.bias") == ()


def test_the_vision_model_inside_a_larger_one(tmp_path):
    source, target = save_in("hf", tmp_path), random_encoder(2)
    tensors = {HF_PREFIX + name: tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    load(target, tmp_path)
    assert equal(source, target)


@pytest.mark.parametrize(
    "wrap", [lambda state: state, lambda state: {"state_dict": state}, lambda state: {"model": state}]
)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "b.pth"])
def test_files_of_torch(name, wrap, tmp_path):
    source, target = random_encoder(), random_encoder(2)
    torch.save(wrap(to_layout(source.state_dict(), "aim")), tmp_path / name)
    load(target, tmp_path)
    assert equal(source, target)


def shard(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{index % 2 + 1}-of-00002.safetensors" for index, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name, place in places.items() if place == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def test_shards(tmp_path):
    source, target = save_in("hf", tmp_path), random_encoder(2)
    places = shard(tmp_path)
    load(target, tmp_path)
    assert equal(source, target)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002.safetensors"):
        load(target, tmp_path)
    outside = dict.fromkeys(places, "../weights.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": outside}))
    with pytest.raises(UserError, match="no file of weights beside it"):
        load(target, tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("img_size", [8, 24])
def test_another_grid_is_resampled_as_timm_does_it(layout, img_size, tmp_path):
    source, target = save_in(layout, tmp_path), random_encoder(2, img_size=img_size)
    load(target, tmp_path, EncoderConfig(img_size=img_size))
    expected = random_encoder(3, img_size=img_size)
    expected.load_state_dict(checkpoint_filter_fn(source.state_dict(), expected), strict=True)
    assert expected.pos_embed.shape[1] == (img_size // 4) ** 2 != source.pos_embed.shape[1]
    assert equal(target, expected)
    assert torch.equal(target.blocks[1].attn.qkv.weight, source.blocks[1].attn.qkv.weight)


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4, None])
def test_a_pickle_that_runs_code_does_not_run(protocol, tmp_path):
    content = {"patch_embed.proj.weight": torch.zeros(2), "extra": Malicious(tmp_path / "owned")}
    path = tmp_path / "weights.pt"
    if protocol is None:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(UserError, match=r"refused.*can run code.*safetensors") as error:
        load(random_encoder(), path)
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)  # torch's advice to load it all the same
    assert not (tmp_path / "owned").exists()
    torch.load(path, weights_only=False) if protocol is None else pickle.loads(path.read_bytes())
    assert (tmp_path / "owned").exists(), "the file would have run code"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"head.weight": torch.zeros(2, 2)}, "no place for: head.weight"),
        (lambda t: t | {"cls_token": torch.zeros(1, 1, 32)}, "no place for: cls_token"),
        (lambda t: {k: v for k, v in t.items() if "trunk.blocks.1" not in k}, "lacks trunk.blocks.1.norm_1.weight.* 4 more"),
        (
            lambda t: t | {"trunk.post_trunk_norm.weight": torch.zeros(48)},
            r"trunk.post_trunk_norm.weight has the shape \(48,\), the encoder's is \(32,\)",
        ),
        (lambda t: t | {"preprocessor.pos_embed": torch.zeros(1, 15, 32)}, r"\(1, 15, 32\).*\(1, 16, 32\).*square grid"),
        (lambda t: {"x": torch.zeros(1), "y": torch.zeros(1)}, "no known layout.*x, y"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(change, message, tmp_path):
    save_in("aim", tmp_path)
    save_file(change(load_file(tmp_path / "model.safetensors")), tmp_path / "model.safetensors")
    encoder = random_encoder(2)
    with pytest.raises(UserError, match=message) as error:
        load(encoder, tmp_path)
    assert "\n" not in str(error.value)
    assert equal(encoder, random_encoder(2)), "nothing is loaded by halves"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_width(layout, tmp_path):
    save_in(layout, tmp_path, random_encoder(embed_dim=48))
    name = names_in(layout, "pos_embed")[0]
    with pytest.raises(UserError, match=rf"{name} has the shape \(1, 16, 48\), the encoder's is \(1, 16, 32\)"):
        load(random_encoder(), tmp_path)
    save_in(layout, tmp_path, random_encoder(mlp_hidden_dim=96))
    name = names_in(layout, "blocks.0.mlp.fc1_g.weight")[0]
    with pytest.raises(UserError, match=rf"{name} has the shape \(96, 32\), the encoder's is \(64, 32\)"):
        load(random_encoder(), tmp_path)


def test_heads_and_statistics_that_no_shape_shows(tmp_path):
    save_in("hf", tmp_path)
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2}')
    with pytest.raises(UserError, match=r"encoder.num_heads is 4, the weights .* have 2"):
        load(random_encoder(), tmp_path)
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {"mean": [0.5, 0.5, 0.5]}}')
    with pytest.raises(UserError, match=r"encoder.mean .* take \[0.5, 0.5, 0.5\]"):
        load(random_encoder(), tmp_path)
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {"mean": [0.4815, 0.4578, 0.4082]}}')  # CLIP's, rounded
    load(random_encoder(), tmp_path)


def test_another_vit_does_not_take_aimv2s_layout(tmp_path):
    save_in("aim", tmp_path)
    vit = build_encoder(EncoderConfig("vit_tiny_patch16_224", embed_dim=32, depth=2, num_heads=4))
    with pytest.raises(UserError, match=r"layout of AIMv2 .*another ViT"):
        load(vit, tmp_path)
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    other = build_encoder(EncoderConfig("vit_tiny_patch16_224", embed_dim=32, depth=2, num_heads=4))
    load(other, tmp_path)
    assert equal(vit, other)


def test_where_weights_are_looked_for(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        find_weights(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no weights"):
        find_weights(tmp_path)
    (tmp_path / "a.bin").touch()
    assert find_weights(tmp_path).name == "a.bin"
    (tmp_path / "b.pt").touch()
    with pytest.raises(UserError, match=r"several files of weights \(a.bin, b.pt\)"):
        find_weights(tmp_path)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "encoder.safetensors").touch()
    assert find_weights(tmp_path) == tmp_path / "export" / "encoder.safetensors"


@pytest.mark.parametrize(
    ("name", "content"), [("a.safetensors", b"x" * 40), ("a.pt", b"PK\x03\x04"), ("a.bin", b""), ("index.json", b"[]")]
)
def test_damaged_files_are_one_line(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as error:
        read_tensors(tmp_path / name)
    assert "\n" not in str(error.value)


def test_other_things_than_tensors(tmp_path):
    torch.save({"step": 3, "weight": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="other things than tensors: step"):
        read_tensors(tmp_path / "a.pt")
    torch.save([torch.zeros(1)], tmp_path / "a.pt")
    with pytest.raises(UserError, match="holds a list"):
        read_tensors(tmp_path / "a.pt")
