import numpy as np
import pytest
import torch
from torch.nn import functional as F

from evals.encoder import BlockEncoder, Features, Provenance, TextTower, TokenEncoder
from evals.text import caption_scorer
from evals.text.caption_scorer import CaptionScorer, CaptionScoring
from evals.text.scorers import TowerScorer
from evals.transforms import ImageTransform
from pretrain.types import ImageSpec, ImageTextBatch, UserError

SPEC = ImageSpec(16)
TEXTS = ["ab", "a", "abcdefgh", "cab", "zzz", "hg fe"]


class Letters:
    """A tokenizer for tests: a letter is a token, 1 is EOS, 0 pads."""

    eos_id, pad_id, context_length, vocab_size = 1, 0, 12, 29

    def encode(self, captions):
        return [[*[2 + (ord(c) - 97) % 27 for c in text][: self.context_length - 1], 1] for text in captions]


def scorer_of(tiny, **scoring):
    vit, objective = tiny()
    with torch.no_grad():  # far from the initial weights, where all texts of a length are alike
        for module in (vit, objective):
            for parameter in module.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    vit.eval(), objective.eval().requires_grad_(False)
    encoder = BlockEncoder(vit, transform=ImageTransform(SPEC), provenance=Provenance("runs/tiny", "tiny"))
    return CaptionScorer(
        encoder, objective=objective, tokenizer=Letters(), scoring=CaptionScoring(**scoring)
    ), objective


def pictures(count=3):
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def objective_ce(scorer, objective, image, text):
    """The objective's own text loss of one caption, full attention: total cross entropy, EOS included."""
    ids = torch.tensor(scorer.tokenizer.encode([text]))
    batch = ImageTextBatch(
        image_BCHW=SPEC.normalise(image[None]),
        text_BL=ids,
        text_valid_BL=torch.ones_like(ids, dtype=torch.bool),
        position_B=torch.zeros(1, dtype=torch.long),
        seed=0,
        keys=["x"],
        captions=[text],
    )
    term = objective.validation_terms(scorer.encoder.vit, batch)["text_ce"]
    return float(term.total), int(term.count)


def restated(scorer, objective, image):
    return np.array([[objective_ce(scorer, objective, one, text) for text in TEXTS] for one in image])  # [B, T, 2]


@pytest.mark.parametrize("block_bytes", [caption_scorer.BLOCK_BYTES, 1])
def test_likelihood_is_the_objectives_loss(tiny, monkeypatch, block_bytes):
    monkeypatch.setattr(
        caption_scorer, "BLOCK_BYTES", block_bytes
    )  # 1: every text, picture and row in a block of its own
    scorer, objective = scorer_of(tiny)
    image = pictures()
    texts = scorer.prepare([[text] for text in TEXTS])
    expected = -restated(scorer, objective, image)[..., 0]
    np.testing.assert_allclose(scorer.similarity(image, texts), expected, atol=1e-5, rtol=1e-6)
    assert np.ptp(expected[:, 0]) > 1e-3  # pictures do matter here


def test_mean_over_tokens(tiny):
    scorer, objective = scorer_of(tiny, tokens="mean")
    image = pictures()
    total, count = np.moveaxis(restated(scorer, objective, image), -1, 0)
    texts = scorer.prepare([[text] for text in TEXTS])
    np.testing.assert_allclose(scorer.similarity(image, texts), -total / count, atol=1e-5)


def test_grey_prior_is_taken_off(tiny):
    scorer, objective = scorer_of(tiny, prior="grey")
    image = pictures()
    ids = [torch.tensor(scorer.tokenizer.encode([text])) for text in TEXTS]
    tokens = scorer.encoder.vit.forward_features(torch.zeros(1, 3, 16, 16))  # normalised: the mean colour
    prior = []
    for text_1L in ids:
        hidden = objective.decoder(tokens, text_1L)[0, 16:]
        prior.append(-float(F.cross_entropy(objective.decoder.text_head(hidden), text_1L[0], reduction="sum")))
    expected = -restated(scorer, objective, image)[..., 0] - np.array(prior)
    np.testing.assert_allclose(scorer.similarity(image, scorer.prepare([[t] for t in TEXTS])), expected, atol=1e-5)


def test_beginning_of_a_caption_leaves_its_end_out(tiny):
    """p(text begins the caption) = p(text and then the end) / p(end | text), and the whole is what the loss gives."""
    scorer, objective = scorer_of(tiny, end=False)
    whole, _ = scorer_of(tiny)
    image = pictures(1)
    difference = scorer.similarity(image, scorer.prepare([["cab"]])) - whole.similarity(image, whole.prepare([["cab"]]))
    ids = torch.tensor(scorer.tokenizer.encode(["cab"]))
    hidden = objective.decoder(scorer.encoder.vit.forward_features(SPEC.normalise(image)), ids)[0, -1]
    end = objective.decoder.text_head(hidden).log_softmax(-1)[1]
    assert float(difference) == pytest.approx(-float(end), abs=1e-5)


def test_wordings_of_a_thing_are_a_mixture(tiny):
    scorer, objective = scorer_of(tiny)
    image = pictures(2)
    likelihood = np.exp(-restated(scorer, objective, image)[..., 0])
    texts = scorer.prepare([TEXTS[:1], TEXTS[1:4], TEXTS[4:]])
    parts = [likelihood[:, :1], likelihood[:, 1:4], likelihood[:, 4:]]
    expected = np.log(np.stack([part.mean(1) for part in parts], axis=1))
    np.testing.assert_allclose(scorer.similarity(image, texts), expected, atol=1e-5)


def test_texts_that_fill_the_context_are_noted(tiny):
    scorer, _ = scorer_of(tiny)
    assert scorer.notes(scorer.prepare([["a" * 40], ["b"]])) == {"texts_cut_to_context": 1}
    assert scorer.notes(scorer.prepare([["b"]])) == {}


def test_settings_know_the_decoder_and_the_options(tiny):
    scorer, objective = scorer_of(tiny)
    before = scorer.settings()
    with torch.no_grad():
        objective.decoder.bos.add_(1)
    assert scorer.settings()["text_weights"] != before["text_weights"]
    assert scorer_of(tiny, tokens="mean")[0].settings() != before


def test_decoders_that_do_not_fit_are_errors(tiny):
    scorer, _ = scorer_of(tiny)
    _, pixels = tiny(text_weight=0.0)
    with pytest.raises(UserError, match="pixels alone"):
        CaptionScorer(scorer.encoder, objective=pixels, tokenizer=Letters())
    scorer.encoder.embed_dim = 48
    with pytest.raises(UserError, match="32 wide, the encoder's are 48"):
        CaptionScorer(scorer.encoder, objective=scorer_of(tiny)[1], tokenizer=Letters())


class Words(TextTower):
    """Vectors by the table, 10 times too long for odd texts: lengths must not matter."""

    def encode_text(self, texts):
        table = {"x": (10.0, 0.0), "y": (0.0, 1.0), "-x": (-1.0, 0.0), "xy": (3.0, 3.0)}
        return torch.tensor([table[text] for text in texts])


class Compass(TokenEncoder):
    """Its picture vector is the mean of the red and the green channel."""

    def __init__(self, *, text=True, pooled=True):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.text = Words() if text else None
        self.pooled, self.embed_dim = pooled, 2
        self.transform = ImageTransform(ImageSpec(4, mean=(0, 0, 0), std=(1, 1, 1)))
        self.provenance = Provenance("open_clip:fake", "fake", "clip")

    def forward(self, image_BCHW):
        vector = image_BCHW.mean((2, 3))[:, :2]
        return Features(vector[:, None], vector[:, None][:, :0], vector if self.pooled else None)

    def grid(self, height, width):
        return 1, 1


def test_tower_by_hand():
    image = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    image[0, 0], image[1, 0], image[1, 1] = 255, 51, 51  # vectors (1, 0) and (0.2, 0.2)
    scorer = TowerScorer(Compass())
    # "x" and "y" together: mean of (1, 0) and (0, 1), normalised: (r, r), although the first is 10 times as long
    similarity = scorer.similarity(image, scorer.prepare([["x"], ["y"], ["-x"], ["x", "y"], ["xy"]]))
    r = 0.5**0.5
    np.testing.assert_allclose(similarity, [[1, 0, -1, r, r], [r, r, -r, 1, 1]], atol=1e-6)


def test_tower_errors():
    with pytest.raises(UserError, match="no text tower"):
        TowerScorer(Compass(text=False))
    scorer = TowerScorer(Compass(pooled=False))
    with pytest.raises(UserError, match="2 wide, its picture vector is none"):
        scorer.similarity(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), scorer.prepare([["x"]]))
