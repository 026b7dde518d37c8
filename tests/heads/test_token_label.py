import pytest
import torch
from losses import means
from torch.nn import functional as F

from patchform.errors import DataError, UsageError
from patchform.heads.token_label import Raw, TokenLabel
from patchform.records import FeatureInfo, Features, Label

CLASSES, WIDTH, CELLS = 7, 12, 6


def head(**options):
    torch.manual_seed(0)
    built = TokenLabel(FeatureInfo((4, 8), (8, 16), WIDTH), classes=CLASSES, **options)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter)
    return built


def features(images=5, padding=None):
    draw = torch.Generator().manual_seed(1)
    tokens, summary = torch.randn(images, CELLS, 8, generator=draw), torch.randn(images, WIDTH, generator=draw)
    return Features((), (), (1, 1), tokens, summary, padding)


def targets(images=5):
    return [Label(torch.tensor([number % CLASSES])) for number in range(images)]


def test_logits_add_the_best_token_at_a_half():
    built, given = head(), features()
    raw = built(given)
    wanted = built.classifier(given.summary) + 0.5 * built.auxiliary(given.tokens).max(1).values
    assert torch.equal(built.logits(raw), wanted)
    assert not torch.allclose(built.logits(raw), built.classifier(given.summary), atol=1e-2)  # control
    found = built.decode(raw, [(1, 1)] * 5)
    torch.testing.assert_close(torch.stack([label.scores for label in found]), wanted.softmax(1))
    assert torch.equal(torch.cat([label.classes for label in found]), wanted.argmax(1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_torchs_cross_entropy_of_image_and_tokens(smoothing):
    built = head(smoothing=smoothing)
    raw, wanted = built(features()), torch.arange(5) % CLASSES
    found = means(built.loss(raw, targets()))
    torch.testing.assert_close(found["loss"], F.cross_entropy(raw.summary, wanted, label_smoothing=smoothing))
    tokens = F.cross_entropy(raw.tokens.flatten(0, 1), wanted.repeat_interleave(CELLS), label_smoothing=smoothing)
    torch.testing.assert_close(found["auxiliary"], 0.5 * tokens)
    soft = [Label(label.classes, F.one_hot(label.classes[0], CLASSES).float()) for label in targets()]
    torch.testing.assert_close(means(built.loss(raw, soft)), found)


def test_tokens_on_padding_count_for_nothing():
    built = head()
    padding = torch.zeros(5, 2, 3, dtype=torch.bool)
    padding[:, 1] = True
    given = features(padding=padding)
    whole, part = built(given), built(given._replace(tokens=given.tokens[:, :3], padding=None))
    torch.testing.assert_close(built.logits(whole), built.logits(part))
    torch.testing.assert_close(means(built.loss(whole, targets())), means(built.loss(part, targets())))
    bare = whole._replace(padding=None)
    assert not torch.allclose(built.logits(bare), built.logits(part))  # control
    nothing = Raw(whole.summary, whole.tokens, torch.ones(5, CELLS, dtype=torch.bool))
    assert built.logits(nothing).isfinite().all()
    assert means(built.loss(nothing, targets()))["auxiliary"] == 0


def test_micro_batches_weighted_by_count_are_the_whole_batch():
    built = head(smoothing=0.1)
    raw, labels = built(features()), targets()
    parts = [
        built.loss(Raw(raw.summary[part], raw.tokens[part], None), labels[part]) for part in (slice(0, 2), slice(2, 5))
    ]
    for name, whole in built.loss(raw, labels).items():
        torch.testing.assert_close(sum(part[name].sum for part in parts), whole.sum)
        assert sum(part[name].count for part in parts) == whole.count == built.counts(labels)[name] == 5


def test_what_it_refuses():
    for wrong in ({"smoothing": 1.0}, {"auxiliary_weight": -0.1}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            head(**wrong)
    with pytest.raises(UsageError, match="tokens"):
        head()(features()._replace(tokens=None))
    built = head()
    with pytest.raises(DataError, match="exactly one class"):
        built.loss(built(features(1)), [Label(torch.tensor([1, 2]))])
