"""Cards say what the weights were trained with: a rival's are not AIMv2's, whatever the layout of the files."""

from dataclasses import asdict

import pytest
import yaml

from pretrain.export import save_json, save_tensors
from pretrain.export_formats import export_as
from pretrain.models.vision import EncoderConfig, build_encoder
from pretrain.objectives.config import ObjectiveConfig

ENCODER = EncoderConfig(embed_dim=32, depth=1, num_heads=2, mlp_hidden_dim=64, img_size=16)


@pytest.fixture
def card(tmp_path):
    """Card and tags of an export with the given objective (None: it has none)."""

    def write(objective, layout):
        folder = tmp_path / "export"
        fields = {name: value for name, value in asdict(ENCODER).items() if value is not None}
        spec = ENCODER.image_spec()
        image = {"img_size": spec.img_size, "mean": spec.mean, "std": spec.std}
        save_json({"format": 1, "encoder": fields, "image": image, "info": {}}, folder / "encoder.json")
        save_tensors(build_encoder(ENCODER).state_dict(), folder / "encoder.safetensors")
        if objective is not None:
            save_json({"format": 1, "objective": asdict(objective)}, folder / "objective.json")
        text = (export_as(folder, layout) / "README.md").read_text()
        return text, yaml.safe_load(text.split("---")[1])["tags"]

    return write


@pytest.mark.parametrize("layout", ["timm", "hf", "aim"])
@pytest.mark.parametrize(
    ("name", "options", "source"),
    [
        ("aimv2", {}, "2411.14402"),
        ("aimv1", {"text_weight": 0.0}, "2401.08541"),
        ("captioner", {"image_weight": 0.0}, "2306.07915"),
        ("cappa", {"image_weight": 0.0, "parallel": 0.75}, "2306.07915"),
        ("clip", {"kind": "clip"}, "2103.00020"),
        ("siglip", {"kind": "siglip"}, "2303.15343"),
        ("mae", {"kind": "mae"}, "2111.06377"),
    ],
)
def test_the_objective_is_named_and_no_other(card, layout, name, options, source):
    text, tags = card(ObjectiveConfig(**options), layout)
    assert tags == [name, "image-feature-extraction"]
    assert source in text
    assert ("2411.14402" in text) == (name == "aimv2")
    assert ("not trained with AIMv2's objective" in text.replace("\n", " ")) == (name != "aimv2" and layout != "timm")
    assert ("cannot compare pictures with texts" in text) == (name in ("clip", "siglip"))


def test_options_that_the_kind_does_not_read_are_left_out(card):
    rows = {
        kind: {
            line.split("|")[1].strip()
            for line in card(ObjectiveConfig(kind=kind), "hf")[0].splitlines()
            if "| objective/" in line
        }
        for kind in ("clip", "siglip", "mae", "aimv2")
    }
    assert "objective/text/depth" in rows["clip"] & rows["siglip"]
    assert ("objective/max_scale" in rows["clip"], "objective/bias" in rows["clip"]) == (True, False)
    assert ("objective/max_scale" in rows["siglip"], "objective/bias" in rows["siglip"]) == (False, True)
    assert rows["mae"] == {f"objective/{name}" for name in ("kind", "mask_ratio", "embed_dim", "depth", "num_heads")}
    assert "objective/image_weight" in rows["aimv2"]
    assert not any("contrastive" in row or "/mae/" in row for row in rows["aimv2"])


def test_an_encoder_alone_does_not_say_what_trained_it(card):
    text, tags = card(None, "hf")
    assert tags == ["image-feature-extraction"]
    assert "with which objective is not recorded" in text
    assert "not trained with AIMv2's objective" not in text
