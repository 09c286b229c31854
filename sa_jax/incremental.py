from sa_jax.landscapes.full import full_mlp
from sa_jax.landscapes.mlp import Weighted, masked_mlp
from sa_jax.landscapes.mlp.state import RECOMPUTED
