import pytest
import torch

from vtviz.train.losses import coefficient_divergence, map_redundancy, relative_error, soft_divergence


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def maps(*shape, seed=0):
    return random(*shape, seed=seed).flatten(3).softmax(dim=-1).unflatten(-1, shape[3:])


def test_relative_error_is_0_for_equality_and_1_for_the_channels_means():
    target = random(4, 6, 5, 5) * 3 + torch.arange(6.0).view(1, 6, 1, 1)
    assert relative_error(target, target) == 0
    means = target.mean(dim=(0, 2, 3), keepdim=True).expand_as(target)
    assert relative_error(means, target) == pytest.approx(1, rel=1e-5)
    noisy = target + random(4, 6, 5, 5, seed=1)
    assert relative_error(100 * noisy, 100 * target) == pytest.approx(float(relative_error(noisy, target)), rel=1e-5)
    assert relative_error(noisy.bfloat16(), target).dtype == torch.float32
    assert torch.isfinite(relative_error(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)))


def test_soft_divergence():
    logits, target = random(8, 5), random(8, 5, seed=1)
    assert soft_divergence(logits, logits, 2) == pytest.approx(0, abs=1e-6)
    assert soft_divergence(logits + 3, logits, 2) == pytest.approx(0, abs=1e-6)  # softmax knows no offset
    assert soft_divergence(logits, target, 2) > 0.1
    p, q = (target / 2).softmax(dim=1), (logits / 2).softmax(dim=1)
    assert soft_divergence(logits, target, 2) == pytest.approx(float((p * (p / q).log()).sum() / 8 * 4), rel=1e-5)


def test_coefficient_divergence():
    own, target = maps(2, 3, 4, 5, 5), maps(2, 3, 4, 5, 5, seed=1)
    assert coefficient_divergence([own], [own]) == pytest.approx(0, abs=1e-6)
    wanted = (target * (target / own).log()).flatten(3).sum(dim=-1).mean()
    assert coefficient_divergence([own], [target]) == pytest.approx(float(wanted), rel=1e-5)
    assert coefficient_divergence([own, own], [target, own]) == pytest.approx(float(wanted) / 2, rel=1e-5)
    other = maps(2, 3, 8, 5, 5)
    assert coefficient_divergence([own, own], [target, other]) == pytest.approx(float(wanted), rel=1e-5)
    assert coefficient_divergence([own], [other]) == 0
    certain = torch.zeros(1, 1, 1, 2, 2)
    certain[..., 0, 0] = 1
    assert torch.isfinite(coefficient_divergence([certain], [certain.flip(-1)]))


def correlated(rho, n=3):
    """Maps of n tokens, (1, 1, n, 16, 16), every pair of which correlates by rho."""
    x = torch.arange(16) * torch.pi / 8
    own = torch.stack([(x * k).cos().expand(16, 16) for k in range(2, 2 + n)])
    waves = rho**0.5 * x.cos().expand(16, 16) + (1 - rho) ** 0.5 * own
    return (1 + waves / 4)[None, None] / 256


def test_map_redundancy_is_the_squared_excess_over_the_correlation_allowed():
    one = maps(2, 1, 1, 6, 6)
    assert map_redundancy(one) == 0
    assert map_redundancy(one.expand(-1, -1, 4, -1, -1)) == pytest.approx(0.49, rel=1e-4)
    assert map_redundancy(torch.cat([one, one], dim=1)) == 0  # heads of one token are averaged
    for rho in (0.0, 0.2, 0.5, 0.9):
        assert map_redundancy(correlated(rho)) == pytest.approx(max(0, rho - 0.3) ** 2, abs=1e-5)
    opposite = torch.stack([correlated(0)[0, 0, 0], correlated(0)[0, 0, 0].flip(-1).roll(4, -1)])[None, None]
    assert map_redundancy(opposite) == 0
    pair = torch.cat([correlated(0), correlated(0)[:, :, :1]], dim=2)  # one pair of six is equal
    assert map_redundancy(pair) == pytest.approx(0.49 / 6, rel=1e-4)


def test_gradients_reach_the_student():
    def gradient(loss):
        own = (random(2, 2, 3, 4, 4) * torch.tensor([1, 0.1]).view(2, 1, 1, 1)).requires_grad_()
        shared = random(2, 2, 1, 4, 4, seed=2)
        loss((own + shared).flatten(3).softmax(dim=-1).unflatten(-1, (4, 4))).backward()
        return own.grad.abs().max()

    assert gradient(map_redundancy) > 0
    assert gradient(lambda a: coefficient_divergence([a], [maps(2, 2, 3, 4, 4, seed=1)])) > 0
