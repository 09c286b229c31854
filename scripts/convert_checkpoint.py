"""Converts the weights of a multilayer perceptron, of whatever file `sa_jax` reads, to .npz.

The public MLPNet of the WoodFisher, CBS and CHITA papers is `checkpoints/mnist_25_epoch_93.97.ckpt` in
https://github.com/IST-DASLab/WoodFisher:

    python scripts/convert_checkpoint.py mnist_25_epoch_93.97.ckpt $SA_JAX_DATA/mlpnet_mnist_93.97.npz

`--layout`, `--order` and `--activation` say what names and shapes do not tell.
"""

import argparse
import sys
from pathlib import Path

from sa_jax import files
from sa_jax.files import array_files, dense_layers, workdirs
from sa_jax.files.npz import npz_bytes
from sa_jax.files.paths import expanded
from sa_jax.networks import mlp
from sa_jax.types import InputError


def main(argv: list[str] | None = None) -> int:
    """Converts, prints the network's layers, and returns the exit code."""
    parser = argparse.ArgumentParser(description="Convert a multilayer perceptron's weights to .npz.")
    parser.add_argument("weights", type=Path, help=f"a file {', '.join(array_files.SUFFIXES)}")
    parser.add_argument("output", type=Path, help="an .npz file, replaced if it exists")
    parser.add_argument("--layout", choices=dense_layers.LAYOUTS, help="how kernels lie")
    parser.add_argument("--activation", default="relu", choices=mlp.ACTIVATIONS, help="that of the network")
    parser.add_argument("--order", help="the layers' names in network order, with commas between them")
    arguments = parser.parse_args(argv)
    try:
        output = expanded(arguments.output)
        if output.suffix != ".npz":
            raise InputError(f"{output}: the output must be an .npz file")
        order = None if arguments.order is None else arguments.order.split(",")
        params = files.load(arguments.weights, order, arguments.layout, arguments.activation)
        arrays = {f"{layer}.weight": parts["kernel"].T for layer, parts in params.items()}
        arrays |= {f"{layer}.bias": parts["bias"] for layer, parts in params.items() if "bias" in parts}
        workdirs.write_file(output, npz_bytes(arrays))
    except InputError as error:
        print(f"convert_checkpoint: {error}", file=sys.stderr)
        return 2
    network = mlp.network_of(params)[1]
    print(f"{output}: {'-'.join(map(str, network.sizes))}, {network.total:,} branches")
    return 0


if __name__ == "__main__":
    sys.exit(main())
