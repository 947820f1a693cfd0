"""Exports for timm, Hugging Face and in the released layout: loaded by others, they give the encoder's features."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.models import VisionTransformer
from torch import nn
from torch.nn import functional as F
from transformers import Aimv2VisionConfig, Aimv2VisionModel, AutoImageProcessor

from pretrain.__main__ import main
from pretrain.data.transforms import EvalTransform
from pretrain.export import Pretrained, save_json, save_tensors
from pretrain.export_formats import _hf_files, export_as
from pretrain.models.layouts import to_layout
from pretrain.models.vision import EncoderConfig, build_encoder
from pretrain.types import UserError

TINY = EncoderConfig(embed_dim=32, depth=2, num_heads=4, mlp_hidden_dim=64, img_size=16)  # as in tests/conftest.py
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
PUBLISHED = EncoderConfig(
    "aimv2_huge_patch14_224", img_size=56, embed_dim=96, depth=3, num_heads=3, mean=MEAN, std=STD
)  # 2.6667 x 96 features inside, as huge has it
ODD = EncoderConfig(
    "aimv2_nano_patch4_32", embed_dim=88, depth=1, num_heads=2, mlp_hidden_dim=120
)  # 120 / 88 * 88 < 120
VIT = EncoderConfig("vit_tiny_patch16_224", img_size=32, embed_dim=48, depth=2, num_heads=3)
ENCODERS = {"tiny": TINY, "published": PUBLISHED, "odd": ODD}


def randomise(encoder: VisionTransformer) -> VisionTransformer:
    """Norm weights too: at their initial ones, a norm left out would not show."""
    torch.manual_seed(1)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.1)
        if parameter.ndim == 1:
            parameter.data += 1
    return encoder.eval().requires_grad_(False)


def write_export(config: EncoderConfig, folder: Path, info: dict | None = None) -> VisionTransformer:
    """An export of the encoder alone, with random weights."""
    encoder = randomise(build_encoder(config))
    fields = {name: value for name, value in vars(config).items() if value is not None}
    spec = config.image_spec()
    image = {"img_size": spec.img_size, "mean": spec.mean, "std": spec.std}
    save_json({"format": 1, "encoder": fields, "image": image, "info": info or {}}, folder / "encoder.json")
    save_tensors(encoder.state_dict(), folder / "encoder.safetensors")
    return encoder


@pytest.fixture(params=list(ENCODERS))
def exported(request, tmp_path):
    """A run folder with an export, the encoder, pictures, and the features to find again."""
    config = ENCODERS[request.param]
    encoder = write_export(config, tmp_path / "run" / "export")
    size = config.image_spec().img_size
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    return tmp_path / "run", config, image, encoder.forward_features(image)


def close(tokens, expected):
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)


def picture(size: tuple[int, int]) -> Image.Image:
    pixels = torch.rand(size[1] // 8, size[0] // 8, 3, generator=torch.Generator().manual_seed(3))
    return Image.fromarray((pixels * 255).to(torch.uint8).numpy()).resize(size, Image.Resampling.BICUBIC)


def expected_pixels(image: Image.Image, config: EncoderConfig):
    spec = config.image_spec()
    return spec.normalise(EvalTransform(spec.img_size)(image, None)[None])


def test_timm_loads_it_in_a_process_without_this_suite(exported, tmp_path):
    run, config, image, expected = exported
    folder = export_as(run, "timm")
    assert folder == run / "export-timm"
    torch.save(image, tmp_path / "image.pt")
    script = f"""
import sys, timm, torch
encoder = timm.create_model("local-dir:{folder}", pretrained=True).eval()
assert not any(name.split(".")[0] == "pretrain" for name in sys.modules)
data = timm.data.resolve_model_data_config(encoder)
tokens = encoder.forward_features(torch.load("{tmp_path}/image.pt"))
torch.save((tokens.detach(), data["mean"], data["std"], data["input_size"], data["crop_pct"]), "{tmp_path}/out.pt")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=240, cwd=tmp_path)
    tokens, mean, std, input_size, crop_pct = torch.load(tmp_path / "out.pt")
    close(tokens, expected)
    spec = config.image_spec()
    assert (tuple(mean), tuple(std), input_size[-1], crop_pct) == (spec.mean, spec.std, spec.img_size, 1.0)


def test_an_odd_hidden_width_is_kept():
    assert build_encoder(ODD).blocks[0].mlp.fc1_g.out_features == 120


def test_timm_takes_the_tensors_strictly(exported):
    run, _, image, expected = exported
    folder = export_as(run, "timm")
    about = json.loads((folder / "config.json").read_text())
    encoder = timm.create_model(about["architecture"], pretrained=False, **about["model_args"]).eval()
    encoder.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    close(encoder.forward_features(image).detach(), expected)


@pytest.mark.parametrize("size", ["large", "huge", "1b", "3b"])
def test_published_sizes_have_timms_and_transformers_tensors(size):
    """Names and shapes of all tensors, on the meta device, where nothing is allocated."""
    config = EncoderConfig(f"aimv2_{size}_patch14_224")
    with torch.device("meta"):
        model = Pretrained(config, build_encoder(config), config.image_spec(), None, None, {})
        plain = timm.create_model(config.name, pretrained=False).state_dict()
        theirs = Aimv2VisionModel(Aimv2VisionConfig.from_dict(_hf_files(model)["config.json"])).state_dict()

    def shapes(state):
        return {key: tuple(value.shape) for key, value in state.items()}

    assert shapes(to_layout(model.encoder.state_dict(), "timm")) == shapes(plain)
    assert shapes(to_layout(model.encoder.state_dict(), "hf")) == shapes(theirs)


def test_transformers_loads_it_strictly(exported):
    run, config, image, expected = exported
    folder = export_as(run, "hf")
    model, report = Aimv2VisionModel.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert not model.use_head
    with torch.no_grad():
        close(model.eval()(image).last_hidden_state, expected)
    processor, spec = AutoImageProcessor.from_pretrained(folder), config.image_spec()
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == (spec.mean, spec.std)
    source = picture((90, 70))
    assert processor(source, return_tensors="pt").pixel_values.shape == image[:1].shape
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(source, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels, expected_pixels(source, config), atol=1e-5, rtol=0)


class ReleasedBlock(nn.Module):
    """A block with the modules and names of apple/ml-aim (aim-v2/aim/v2/torch/layers.py and v1's)."""

    def __init__(self, dim, hidden):
        super().__init__()
        self.norm_1, self.norm_2 = nn.RMSNorm(dim, eps=1e-5), nn.RMSNorm(dim, eps=1e-5)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        for name in ("fc1", "fc3"):
            self.mlp.add_module(name, nn.Linear(dim, hidden, bias=False))
        self.mlp.fc2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x, heads):
        q, k, v = self.attn.qkv(self.norm_1(x)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + self.attn.proj((scores @ v).transpose(1, 2).flatten(2))
        y = self.norm_2(x)
        return x + self.mlp.fc2(F.silu(self.mlp.fc1(y)) * self.mlp.fc3(y))


class Released(nn.Module):
    """The released encoder, restated: it takes ml-aim's own arguments and has its tensors' names."""

    def __init__(self, *, img_size, patch_size, embed_dim, num_blocks, num_heads, mlp_hidden_dim):
        super().__init__()
        self.heads = num_heads
        self.preprocessor, self.trunk = nn.Module(), nn.Module()
        self.preprocessor.patchifier = nn.Module()
        self.preprocessor.patchifier.proj = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size)
        self.preprocessor.patchifier.norm = nn.RMSNorm(embed_dim, eps=1e-5)
        self.preprocessor.pos_embed = nn.Parameter(torch.zeros(1, (img_size // patch_size) ** 2, embed_dim))
        self.trunk.blocks = nn.ModuleList(ReleasedBlock(embed_dim, mlp_hidden_dim) for _ in range(num_blocks))
        self.trunk.post_trunk_norm = nn.RMSNorm(embed_dim, eps=1e-5)

    def forward(self, image):
        patchifier = self.preprocessor.patchifier
        x = patchifier.norm(patchifier.proj(image).flatten(2).transpose(1, 2)) + self.preprocessor.pos_embed
        for block in self.trunk.blocks:
            x = block(x, self.heads)
        return self.trunk.post_trunk_norm(x)


def test_the_released_layout(exported):
    run, _, image, expected = exported
    folder = export_as(run, "aim")
    model = Released(**json.loads((folder / "config.json").read_text()))
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    with torch.no_grad():
        close(model(image), expected)
    assert json.loads((folder / "preprocessor_config.json").read_text())["do_center_crop"]


@pytest.mark.parametrize("layout", ["timm", "hf", "aim"])
def test_the_cards_snippet_runs_and_gives_the_features(tmp_path, layout):
    info = {"steps": 12, "val": {"text_ce": 1.25}, "started_from": "/secret/weights"}
    encoder = write_export(PUBLISHED, tmp_path / "run" / "export", info)
    save_json({"format": 1, "objective": {"image_weight": 0.4}}, tmp_path / "run" / "export" / "objective.json")
    config = {"data": {"train": {"kind": "scenes", "path": None}, "val": {"path": "/secret"}, "tokenizer": "bpe"}}
    save_json(config, tmp_path / "run" / "config.yaml")  # JSON is YAML
    folder = export_as(tmp_path / "run", layout)
    card = (folder / "README.md").read_text()
    assert "| steps | 12 |" in card
    assert "| val/text_ce | 1.25 |" in card
    assert "| objective/image_weight | 0.4 |" in card
    assert "weights `weights`, whose licence applies" in card
    assert "synthetic" in card
    assert "/secret" not in card
    assert "mean (0.4, 0.5, 0.6)" in card
    assert f"| parameters | {sum(p.numel() for p in encoder.parameters()):,} |" in card
    snippet = card.split("```python\n")[1].split("```")[0]
    snippet = snippet.replace("torch.zeros(1, 3, 56, 56)", "torch.linspace(-1, 1, 3 * 56 * 56).view(1, 3, 56, 56)")
    script = snippet + f'torch.save(tokens, "{tmp_path}/tokens.pt")\n'
    subprocess.run([sys.executable, "-c", script], check=True, timeout=240, cwd=folder)
    image = torch.linspace(-1, 1, 3 * 56 * 56).view(1, 3, 56, 56)
    close(torch.load(tmp_path / "tokens.pt"), encoder.forward_features(image))


def test_another_vit_goes_to_timm_only(tmp_path):
    encoder = write_export(VIT, tmp_path / "export")
    loaded = timm.create_model(f"local-dir:{export_as(tmp_path, 'timm')}", pretrained=True).eval()
    image = torch.randn(2, 3, 32, 32)
    close(loaded.forward_features(image).detach(), encoder.forward_features(image))
    for layout in ("hf", "aim"):
        with pytest.raises(UserError, match=r"vit_tiny_patch16_224.*--to timm"):
            export_as(tmp_path, layout)
        assert not (tmp_path / f"export-{layout}").exists()


def test_the_command(tmp_path, capsys):
    write_export(TINY, tmp_path / "run" / "export")
    for _ in range(2):  # an earlier export is written over
        assert main(["export", str(tmp_path / "run"), "--to", "aim", "--out", str(tmp_path / "out")]) == 0
    assert str(tmp_path / "out") in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    for args, words in (
        (["nowhere", "--to", "timm"], "nowhere is neither a run nor an export"),
        ([str(tmp_path / "run"), "--to", "timm", "--out", str(tmp_path / "run" / "export")], "holds other things"),
    ):
        assert main(["export", *args]) == 2
        error = capsys.readouterr().err.strip()
        assert words in error
        assert "\n" not in error
