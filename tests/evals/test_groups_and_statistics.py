import pytest
from scipy.stats import binomtest

from evals.groups import Group, parse_groups
from evals.statistics import wilson
from pretrain.types import UserError


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (37, 100), (1, 1000), (5000, 10_000)])
def test_wilson_equals_scipy(hits, n):
    reference = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(100 * hits / n, n) == pytest.approx((100 * reference.low, 100 * reference.high), abs=1e-9)


def test_groups():
    assert parse_groups(["runs/latest", "flickr=runs/a,runs/b", "timm:vit[depth=2,img_size=64]@x"]) == [
        Group("runs/latest", ("runs/latest",)),
        Group("flickr", ("runs/a", "runs/b")),
        Group("timm:vit[depth=2,img_size=64]@x", ("timm:vit[depth=2,img_size=64]@x",)),
    ]
    assert parse_groups(["ours=random:timm:vit[depth=2,img_size=64],runs/b"])[0].specs == (
        "random:timm:vit[depth=2,img_size=64]",
        "runs/b",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a=runs/x,,runs/y"], "give SPEC or LABEL=SPEC,SPEC"),
        (["a=x", "a=y"], "the label 'a' is given twice"),
        ([""], "give SPEC"),
    ],
)
def test_wrong_groups(arguments, message):
    with pytest.raises(UserError, match=message):
        parse_groups(arguments)
