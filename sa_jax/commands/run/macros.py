"""Names of the macros that open every config of `sa-jax run`, each of which sets the setting of its name."""

MACROS = (
    "DATASET",
    "INPUT_MEAN",
    "INPUT_STD",
    "WEIGHTS",
    "HIDDEN",
    "ACTIVATION",
    "DENSITY",
    "SEED",
    "NUM_STEPS",
    "NUM_CHAINS",
    "NUM_SAMPLES",
    "CHECKPOINT_SECONDS",
)
