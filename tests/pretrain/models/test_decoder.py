import pytest
import torch

from pretrain.models.attention import choose_fused_attention
from pretrain.models.decoder import Decoder


@pytest.fixture
def decoder(attention_path):
    torch.manual_seed(0)
    decoder = Decoder(
        20, embed_dim=24, depth=3, num_heads=2, mlp_hidden_dim=32, vocab_size=31, patch_pixels=12, context_length=12
    )
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.4)  # sharp enough that greedy choices differ
    choose_fused_attention(decoder, device_type="cpu", dtype=attention_path)
    return decoder.eval()


def slow_generate(decoder, image, prompt, *, eos_id, limit):
    """No cache: the whole sequence anew for each token."""
    captions = []
    for row in range(len(image)):
        text = prompt[row].tolist() if prompt is not None else []
        while len(text) < limit:
            # the last token is only a place to be predicted
            hidden = decoder(image[row : row + 1], torch.tensor([[*text, 0]]))
            text.append(int(decoder.text_head(hidden[0, -1]).argmax()))
            if text[-1] == eos_id:
                break
        captions.append(text)
    return captions


@pytest.mark.parametrize("prompt", [None, [[4, 9, 2], [7, 7, 1], [1, 2, 3]]])
def test_cached_generation_equals_uncached(decoder, prompt):
    image = torch.randn(3, 5, 20)
    prompt = None if prompt is None else torch.tensor(prompt)
    expected = slow_generate(decoder, image, prompt, eos_id=30, limit=12)
    # an end that comes at different places, so that finished rows wait for the others
    eos_id = expected[0][5]
    expected = slow_generate(decoder, image, prompt, eos_id=eos_id, limit=12)
    generated = decoder.generate(image, prompt, eos_id=eos_id).tolist()
    width = len(generated[0])
    assert [row + [eos_id] * (width - len(row)) for row in expected] == generated
    assert len({len(row) for row in expected}) > 1


def test_generation_stops_at_the_limit_and_at_the_context(decoder):
    image = torch.randn(2, 5, 20)
    assert decoder.generate(image, eos_id=99, max_tokens=4).shape == (2, 4)
    assert decoder.generate(image, eos_id=99).shape == (2, 12)
    full = torch.zeros(2, 12, dtype=torch.long)
    assert torch.equal(decoder.generate(image, full, eos_id=99), full)


def test_sampling_follows_its_generator_and_top_k(decoder):
    image = torch.randn(1, 5, 20).repeat(200, 1, 1)

    def draw(seed, **options):
        generator = torch.Generator().manual_seed(seed)
        return decoder.generate(image, eos_id=99, max_tokens=1, temperature=1.0, generator=generator, **options)

    assert torch.equal(draw(0), draw(0))
    assert len(draw(0).unique()) > 5
    assert len(draw(0, top_k=2).unique()) == 2
    greedy = decoder.generate(image, eos_id=99, max_tokens=1)
    assert torch.equal(draw(0, top_k=1), greedy)
