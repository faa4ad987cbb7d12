"""Tokens taken out of a layer or replaced, in VT-ResNets and VT-FPNs."""

import pytest
import torch

from vtviz.models.layers import masked_softmax
from vtviz.models.registry import build_model
from vtviz.models.visual_transformer import Edit, Tokenizer

SMALL = {"num_tokens": 6, "channels": 32, "token_channels": 32, "heads": 2, "num_classes": 5}
SMALL_FPN = {"num_tokens": 4, "channels": 32, "head_channels": 64, "token_channels": 32, "heads": 2, "groups": 4}


def awake(model):
    """Zero-initialised branches would make every block the identity."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.2, 0.6)
            torch.nn.init.normal_(module.running_mean, std=0.1)
    return model.eval()


@pytest.fixture(scope="module", params=["counts", "no_dynamic", "no_transformer", "no_position_encoding"])
def classifier(request):
    torch.manual_seed(0)
    return awake(build_model("vt_resnet34", request.param, **SMALL))  # three blocks


@pytest.fixture(scope="module")
def features(classifier):
    with torch.no_grad():
        return classifier.backbone(torch.randn(1, 3, 64, 96))


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return awake(build_model("vt_fpn_resnet18", num_classes=3, **SMALL_FPN))


def none_absent(outputs, layer):
    return torch.zeros(1, outputs[layer].tokens.shape[2], dtype=torch.bool)


def test_no_edit_changes_nothing(classifier):
    with torch.no_grad():
        image = torch.randn(1, 3, 64, 96)
        logits = classifier(image)
        same, outputs = classifier.forward_edited(classifier.backbone(image), [None, Edit(), None])
        assert torch.equal(logits, same)
        masks = [Edit(absent=none_absent(outputs, i)) for i in range(3)]
        assert torch.allclose(classifier.forward_edited(classifier.backbone(image), masks)[0], logits, atol=1e-5)
        tokens = [Edit(tokens=out.tokenizer.tokens) for out in outputs]
        assert torch.equal(classifier.forward_edited(classifier.backbone(image), tokens)[0], logits)


@torch.no_grad()
def test_an_absent_token_is_read_by_nobody(classifier, features):
    """Whatever stands in its place, nothing that follows changes."""
    _, plain = classifier.forward_edited(features, [])
    for layer in range(3):
        for token in range(plain[layer].tokens.shape[2]):
            absent = none_absent(plain, layer)
            absent[0, token] = True
            results = []
            for noise in (0.0, 50.0):
                tokens = plain[layer].tokenizer.tokens.clone()
                tokens[:, :, token] += noise
                edits = [None] * layer + [Edit(absent, tokens)]
                results.append(classifier.forward_edited(features, edits))
            (one, parts), (two, others) = results
            assert torch.allclose(one, two, atol=1e-5)
            for a, b in zip(parts[layer:], others[layer:], strict=True):
                there = ~a.absent[0]
                assert torch.allclose(a.tokens[:, :, there], b.tokens[:, :, there], atol=1e-4)
                assert torch.allclose(a.feature, b.feature, atol=1e-4)
            assert not torch.equal(one, classifier.forward_edited(features, [])[0])


@torch.no_grad()
def test_the_places_stay_and_nothing_is_made_of_what_is_absent(classifier, features):
    _, plain = classifier.forward_edited(features, [])
    count = plain[0].tokens.shape[2]
    for token in (0, count - 1):
        absent = none_absent(plain, 0)
        absent[0, token] = True
        _, outputs = classifier.forward_edited(features, [Edit(absent)])
        assert [out.tokens.shape for out in outputs] == [out.tokens.shape for out in plain]
        gone = [out.absent[0].nonzero().flatten().tolist() for out in outputs]
        dynamic = classifier.config.stage.dynamic
        if token == 0:  # in T_a: it would be a filter
            assert gone[:2] == [[0], [3] if dynamic else []]
        else:  # in T_b: it is kept for one more block
            assert gone[:2] == [[5], [2]]


@torch.no_grad()
def test_rows_are_independent(classifier, features):
    """All tokens of a layer taken out in one batch, one a row, as one by one."""
    _, plain = classifier.forward_edited(features, [])
    count = plain[1].tokens.shape[2]
    together, _ = classifier.forward_edited(
        [f.expand(count, -1, -1, -1) for f in features], [None, Edit(torch.eye(count) > 0)]
    )
    for token in range(count):
        alone, _ = classifier.forward_edited(features, [None, Edit(torch.eye(count)[token : token + 1] > 0)])
        assert torch.allclose(together[token], alone[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_with_all_tokens_absent_the_classifier_says_its_bias(classifier, features):
    _, plain = classifier.forward_edited(features, [])
    last = Edit(~none_absent(plain, 2))
    logits, outputs = classifier.forward_edited(features, [None, None, last])
    assert torch.allclose(logits[0], classifier.fc.bias)
    assert torch.isfinite(outputs[-1].tokens).all()


@torch.no_grad()
def test_gathering_with_the_tokenizers_own_maps_is_the_tokenizer(classifier, features):
    _, outputs = classifier.forward_edited(features, [])
    before = None
    for block, out in zip(classifier.stage.blocks, outputs, strict=True):
        tokenizer: Tokenizer = block.tokenizer
        again = tokenizer.gather(out.tokenizer.values, out.tokenizer.coefficients, before)
        assert torch.equal(again.tokens, out.tokenizer.tokens)
        flat = torch.full_like(out.tokenizer.coefficients, 1 / out.tokenizer.coefficients[0, 0, 0].numel())
        mean = tokenizer.gather(out.tokenizer.values, flat, before).gathered
        assert torch.allclose(mean, out.tokenizer.values.mean(dim=(-1, -2))[..., None].expand_as(mean), atol=1e-5)
        before = out.tokens


@torch.no_grad()
def test_a_level_of_a_segmenter(segmenter):
    image = torch.randn(2, 3, 64, 96)
    features = segmenter.backbone(image)
    logits, plain = segmenter.forward_edited(features, [], image.shape[-2:])
    assert torch.equal(logits, segmenter(image))
    assert torch.equal(logits, segmenter.forward_edited(features, [None, Edit()], image.shape[-2:])[0])
    absent = torch.tensor([[True, False, False, False], [False] * 4])
    results = []
    for noise in (0.0, 50.0):
        tokens = plain[2].tokenizer.tokens.clone()
        tokens[0, :, 0] += noise
        results.append(segmenter.forward_edited(features, [None, None, Edit(absent, tokens)], image.shape[-2:]))
    (one, levels), (two, _) = results
    assert torch.allclose(one, two, atol=1e-4)
    assert not torch.allclose(one[0], logits[0], atol=1e-4)
    assert torch.allclose(one[1], logits[1], atol=1e-4)
    assert levels[2].projector.coefficients[0, :, 0].abs().max() == 0
    assert levels[0].transformer.attention[0, :, :, 8].abs().max() == 0  # nobody reads the third level's first token
    none, gone = segmenter.forward_edited(features, [Edit(torch.ones(2, 4, dtype=torch.bool))], image.shape[-2:])
    assert torch.isfinite(none).all()
    assert gone[0].projector.coefficients.abs().max() == 0


def test_masked_softmax():
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], dtype=torch.bfloat16)
    assert torch.equal(masked_softmax(logits, 1), logits.float().softmax(dim=1))
    absent = torch.tensor([[False, False, True], [True, True, True]])
    weights = masked_softmax(logits, 1, absent)
    assert torch.allclose(weights[0], torch.tensor([*torch.tensor([1.0, 2.0]).softmax(0), 0.0]))
    assert weights[1].tolist() == [0, 0, 0]


def test_gradients_flow_through_replaced_tokens(classifier, features):
    _, plain = classifier.forward_edited(features, [])
    tokens = plain[0].tokenizer.tokens.detach().requires_grad_()
    logits, _ = classifier.forward_edited(features, [Edit(tokens=tokens)])
    (gradient,) = torch.autograd.grad(logits[0, 0], tokens)
    assert gradient.abs().max() > 0
    assert torch.isfinite(gradient).all()
