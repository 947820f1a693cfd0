"""Zero-shot evaluation of this suite's own CLIP and SigLIP runs, by their text tower."""

import pytest
import torch
import yaml

from evals import results, zeroshot
from evals.load import load_encoder
from evals.text.run_towers import RunTowerScorer, load_towers
from pretrain import cli
from pretrain.data.tokenizers import collate_captions
from pretrain.export import load_pretrained

TOWERS = {"text": {"embed_dim": 32, "depth": 1, "num_heads": 2, "mlp_hidden_dim": 64}, "proj_dim": 24, "pool_heads": 2}
TEXTS = ["a red star", "a blue ring", "star"]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def contrastive_run(request, tiny_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_config({"contrastive": TOWERS})))
    args = ["fit", "--config", str(folder / "tiny.yaml"), "--model.objective.kind", request.param]
    assert cli.main([*args, "--runs", str(folder / "runs"), "--name", "a"]) == 0
    return folder / "runs" / "a"


def test_scores_are_cosines_of_what_the_objective_encodes(contrastive_run):
    loaded = load_pretrained(contrastive_run)
    scorer = zeroshot.build_scorer(load_encoder(str(contrastive_run)), scoring=zeroshot.RETRIEVAL, seed=0)
    assert isinstance(scorer, RunTowerScorer)
    image_BCHW = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    found_BT = scorer.similarity(image_BCHW, scorer.prepare([[text] for text in TEXTS]))
    text_TL, valid_TL = collate_captions(loaded.tokenizer.encode(TEXTS), loaded.tokenizer.pad_id)
    pictures_BP = loaded.objective.encode_image(loaded.encoder, loaded.image.normalise(image_BCHW))
    torch.testing.assert_close(
        found_BT, pictures_BP @ loaded.objective.encode_text(text_TL, valid_TL).T, atol=1e-6, rtol=1e-5
    )
    # two wordings are one vector between both
    both_BT = scorer.similarity(image_BCHW, scorer.prepare([TEXTS[:2]]))
    mean_P = loaded.objective.encode_text(text_TL[:2], valid_TL[:2]).mean(0)
    torch.testing.assert_close(both_BT[:, 0], pictures_BP @ (mean_P / mean_P.norm()), atol=1e-6, rtol=1e-5)


def test_other_evaluations_see_the_encoder_alone(contrastive_run):
    encoder = load_encoder(str(contrastive_run))
    assert encoder.text is None
    assert encoder(torch.zeros(1, 3, 32, 32)).pooled_BE is None


def test_texts_that_fill_the_context_are_counted(contrastive_run):
    scorer = zeroshot.build_scorer(load_encoder(str(contrastive_run)), scoring=zeroshot.RETRIEVAL, seed=0)
    assert scorer.notes(scorer.prepare([["red " * 400], ["star"]])) == {"texts_cut_to_context": 1}
    assert scorer.notes(scorer.prepare([["star"]])) == {}


def test_random_towers_are_drawn_from_the_seed(contrastive_run):
    specs = [(f"random:{contrastive_run}", 0), (f"random:{contrastive_run}", 0), (f"random:{contrastive_run}", 1)]
    drawn = [load_towers(spec, seed=seed)[0].text_proj.weight for spec, seed in [*specs, (str(contrastive_run), 0)]]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[3])
    assert load_towers("timm:vit_tiny_patch16_224", seed=0) is None


def test_the_command(contrastive_run, tmp_path, capsys):
    file = tmp_path / "results.jsonl"
    args = ["--encoder", str(contrastive_run), "--retrieval", "scenes", "--num", "6", "--results", str(file)]
    assert zeroshot.main(args) == 0
    assert "by cosine" in capsys.readouterr().out
    rows = results.read(file)
    assert len(rows) == 12  # the run and its random twin
    kind = load_pretrained(contrastive_run).objective.kind
    assert [row.objective for row in rows] == [kind] * 6 + ["random"] * 6
    assert {row.details["scorer"] for row in rows} == {"cosine"}
