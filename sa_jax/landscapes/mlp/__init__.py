"""The landscape of a masked multilayer perceptron, where a swap costs what it changes.

The modules are read in the order of a proposal: `landscape`, `layout`, `state`, `evaluation`, `ends`, `hidden`,
`logits`, `commit`, `neighbours`, `loops`.
"""

from sa_jax.landscapes.mlp.landscape import masked_mlp
from sa_jax.landscapes.mlp.state import Weighted

__all__ = ["Weighted", "masked_mlp"]
