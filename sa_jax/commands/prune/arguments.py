"""The arguments of `sa-jax prune`. Nothing heavy is loaded here."""

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command to its parser."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="weights file of PyTorch, Keras, .safetensors or .npz"
    )
    data_help = "data: an .npz or .csv file, or 'mnist', 'fashion_mnist' or 'digits'"
    parser.add_argument("--data", required=True, metavar="FILE", help=data_help)
    out_help = "pruned weights file; names, types and all other arrays are those of MODEL"
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=out_help)
    parser.add_argument("--masks", type=Path, metavar="FILE", help="file for the masks, .npz or .safetensors")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--density", type=float, metavar="D", help="share of the weights that is kept (default 0.1)")
    pattern_help = "which weights may be kept, in place of a density, such as 2:4 or unit:0.1"
    size.add_argument("--pattern", metavar="P", help=pattern_help)
    target_help = "search the lowest density that reaches this accuracy on the validation split, such as 0.97"
    _add(size, "--target-accuracy", type=float, metavar="A", help=target_help)
    densities_help = "one pruned file for each of these densities, and a picture of all; such as 0.5,0.2,0.1,0.05"
    size.add_argument("--densities", metavar="LIST", help=densities_help)
    label_help = "column of a .csv file that holds the labels (default: the last), or 'none'"
    parser.add_argument("--label", metavar="NAME", help=label_help)
    scaling = "inputs are (x - MEAN) / STD, as in the training of the model; bytes are divided by 255 first"
    _add(parser, "--input-mean", type=float, default=0.0, metavar="MEAN", help=f"{scaling} (default 0)")
    _add(parser, "--input-std", type=float, default=1.0, metavar="STD", help="see --input-mean (default 1)")
    activation_help = "activation between layers: relu, tanh or gelu (default: that of a Keras file, or relu)"
    parser.add_argument("--activation", metavar="NAME", help=activation_help)
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="wall time to use, about (default: chosen by size)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything random (default 0)")
    workdir_help = "folder for the report and the checkpoints; without it, a stopped command cannot be resumed"
    parser.add_argument("--workdir", type=Path, metavar="DIR", help=workdir_help)
    parser.add_argument("--overwrite", action="store_true", help="replace OUT and earlier results")
    _add(
        parser, "--dry-run", action="store_true", help="open and check all files, say what would happen, and exit"
    )


def _add(parser: argparse._ActionsContainer, flag: str, **how: Any) -> None:
    """Adds a flag that may also be written with underscores, as in the other commands."""
    parser.add_argument(flag, **how)
    hidden: dict[str, Any] = {"help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
    parser.add_argument(flag.replace("-", "_").replace("__", "--"), **how | hidden)
