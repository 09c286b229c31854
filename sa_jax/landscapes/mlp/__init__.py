"""The landscape of a masked multilayer perceptron, which computes only the changes that a swap makes.

To follow one proposal, read the modules in this order: `landscape`, `layout`, `state`, `evaluation`, `ends`,
`hidden`, `logits`, `commit`, `neighbours`, `loops`; or `settling`, where native code evaluates it.
"""

from sa_jax.landscapes.mlp.landscape import BACKENDS, chosen_backend, masked_mlp
from sa_jax.landscapes.mlp.state import Weighted

__all__ = ["BACKENDS", "Weighted", "chosen_backend", "masked_mlp"]
