"""`sa-jax layers`: the linear layers of a whole pretrained model."""
