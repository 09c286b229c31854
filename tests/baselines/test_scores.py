"""One-shot scores: their formulas by brute force, and counts per unit and layer."""

import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.baselines import scores
from sa_jax.networks import masks, mlp
from tests.baselines.conftest import sample_gradients


@pytest.mark.slow
def test_snip_and_obd_are_their_formulas(small):
    network, x, y = small
    gradients, weights = sample_gradients(network, x, y), np.asarray(masks.flatten(network.kernels))
    by_slope = masks.by_score(jnp.abs(weights * gradients.mean(0)), 20)
    by_curvature = masks.by_score(weights**2 * (gradients**2).mean(0), 20)
    np.testing.assert_array_equal(scores.snip(network, x, y, 20), by_slope)
    np.testing.assert_array_equal(scores.obd(network, x, y, 20), by_curvature)


def test_wanda_per_output_has_equal_density_in_every_unit(small):
    network, x, _ = small
    num_kept = 37  # half of 74
    parts = masks.unflatten(scores.wanda_per_output(network, x, num_kept), network.shapes)
    for part in parts:
        per_unit = np.asarray(part.sum(0))
        assert per_unit.max() - per_unit.min() <= 1
    score = masks.unflatten(mlp.saliency(network, x), network.shapes)[0]
    for unit in range(5):
        chosen, rest = (
            np.asarray(score[:, unit])[np.asarray(which)] for which in (parts[0][:, unit], ~parts[0][:, unit])
        )
        assert chosen.min() > rest.max()


def test_node_pruning_drops_whole_units_of_least_importance(small):
    network, x, _ = small
    norms = np.abs(network.kernels[0]).mean(0)
    # All branches without the least of the first layer's five units, of the second's four all.
    num_kept = network.total - 6 - 4
    first, second, third = masks.unflatten(scores.node_input_norm(network, num_kept), network.shapes)
    dropped = int(norms.argmin())
    assert not first[:, dropped].any() and not second[dropped].any()
    assert int(first.sum()) == 24 and int(second.sum()) == 16 and bool(third.all())
    hidden = np.asarray(mlp.layer_inputs(network, x)[1]) > 0
    share = hidden.mean(0)
    importance = -(np.nan_to_num(share * np.log(share)) + np.nan_to_num((1 - share) * np.log1p(-share)))
    first = masks.unflatten(scores.node_entropy(network, x, num_kept), network.shapes)[0]
    assert importance[~np.asarray(first).any(0)] == pytest.approx(importance.min())
