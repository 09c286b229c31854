"""Delayed acceptance: a proposal is screened on some of the samples, and only what passes is evaluated on all.

Christen & Fox 2005, *Markov chain Monte Carlo using an approximation*.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sa_jax.anneal import accept
from sa_jax.types import Landscape


class DelayedState(NamedTuple):
    """The same walk on all samples and on those that screen."""

    walk: Any
    screen: Any

    @property
    def position(self) -> Any:
        """The position."""
        return self.walk.position

    @property
    def energy(self) -> jax.Array:
        """The energy on all samples, float32 `[]`."""
        return self.walk.energy


def delayed_acceptance(landscape: Landscape) -> Landscape:
    """Makes a landscape that decides in two stages. Its data is `(all, some)`, each as `landscape` takes it.

    A swap `x -> y` passes the first stage with the Metropolis-Hastings probability of the energy `E'` on the
    samples that screen. Seen as the proposals of the second stage, those that pass have the ratio
    `q(y -> x) / q(x -> y) = exp((E'(y) - E'(x)) / T)`, by which the second corrects the first: a chain at a fixed
    temperature samples the Boltzmann distribution of the energy on all samples, exactly. What is lost are moves
    that the screening samples judge too harshly.

    Args:
      landscape: what decides in both stages.

    Returns:
      A `Landscape` on the same positions. The samples that screen, `some`, should be like `all`, and few.
    """

    def init(position, data):
        return DelayedState(landscape.init(position, data[0]), landscape.init(position, data[1]))

    def draw(rng_key):
        move_key, screen_key = jax.random.split(rng_key)
        return landscape.draw(move_key), -jax.random.exponential(screen_key)

    def propose(noise, state, temperature, data):
        noise, log_u = noise
        move, log_q_ratio = landscape.propose(noise, state.screen, temperature, data[1])
        change, pending = landscape.delta(state.screen, move, data[1])
        passes = accept(change, log_q_ratio, temperature, log_u)
        ratio = jnp.where(temperature > 0, change / jnp.where(temperature > 0, temperature, 1), 0)
        # -inf would say that it stays where it is.
        ratio = jnp.maximum(ratio, jnp.finfo(jnp.float32).min)
        return (move, pending), jnp.where(passes, ratio, -jnp.inf)

    def delta(state, move, data):
        return landscape.delta(state.walk, move[0], data[0])

    def commit(state, move, pending, accepted):
        swap, screened = move
        walk = landscape.commit(state.walk, swap, pending, accepted)
        return DelayedState(walk, landscape.commit(state.screen, swap, screened, accepted))

    def refresh(state, data):
        return DelayedState(landscape.refresh(state.walk, data[0]), landscape.refresh(state.screen, data[1]))

    inner = landscape.remember
    if inner is None:
        return Landscape(init, draw, propose, delta, commit, refresh, None, landscape.refresh_steps)

    def remember(best, state, improved):
        best, walk = inner(best, state.walk, improved)
        return best, state._replace(walk=walk)

    return Landscape(init, draw, propose, delta, commit, refresh, remember, landscape.refresh_steps)
