"""The landscape of a masked convolutional network, which computes only the changes that a swap makes.

To follow one proposal, read the modules in this order: `landscape`, `state`, `changes`.
"""

from sa_jax.landscapes.cnn.landscape import masked_cnn

__all__ = ["masked_cnn"]
