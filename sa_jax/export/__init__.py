"""Exports pruned networks for devices and other frameworks."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sa_jax import checks, files
from sa_jax.export import arrays, c, graphs, packed
from sa_jax.export.arrays import read_safetensors_packed
from sa_jax.export.cleanup import Cleaned, clean, predict
from sa_jax.export.packed import read_packed
from sa_jax.export.quantization import Quantized, QuantizedLayer, choose_bits, quantize, simulate
from sa_jax.files import datasets, workdirs
from sa_jax.files.npz import read_npz
from sa_jax.networks import mlp
from sa_jax.types import InputError

__all__ = [
    "FORMATS",
    "Cleaned",
    "Quantized",
    "QuantizedLayer",
    "choose_bits",
    "clean",
    "export",
    "predict",
    "quantize",
    "read_packed",
    "read_run",
    "read_safetensors_packed",
    "simulate",
]

# Formats that write several files, and formats that take `max_bytes`.
FOLDERS = ("c", "c_packed")
BUDGETED = (*FOLDERS, "packed")
# Makes files, by their names, from a network and what is known about its inputs.
Format = Callable[[Quantized, c.Inputs | None], Mapping[str, bytes]]


def _dense(make: Callable[[Cleaned], Mapping[str, bytes]]) -> Format:
    return lambda network, inputs: make(simulate(network))


FORMATS: dict[str, Format] = {
    "c": lambda network, inputs: c.files(network, c.FORMS, inputs),
    "c_packed": lambda network, inputs: c.files(network, c.PACKED_FORMS, inputs),
    "packed": lambda network, inputs: packed.files(network),
    "npz": _dense(arrays.npz),
    "safetensors": _dense(arrays.safetensors),
    "safetensors_packed": lambda network, inputs: arrays.safetensors_packed(network),
    "onnx": _dense(graphs.onnx),
    "stablehlo": _dense(graphs.stablehlo),
}


def read_run(workdir: Path) -> tuple[Cleaned, dict[str, Any]]:
    """Returns the cleaned network of a finished run, and the content of its `result.json`.

    Raises:
      InputError: the folder holds no finished run, or files that do not belong together.
    """
    result = workdirs.read_result(workdir)
    try:
        activation, _ = str(result["activation"]), int(result["seed"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{workdir / 'result.json'} is not a result of sa-jax run") from None
    mlp.check_activation(activation)
    names, network = mlp.network_of(files.load(workdir / "weights.npz"))
    found = read_npz(workdir / "masks.npz")
    wanted = {f"{name}/kernel": shape for name, shape in zip(names, network.shapes, strict=True)}
    if {name: array.shape for name, array in found.items()} != wanted:
        raise InputError(f"{workdir}: masks.npz and weights.npz do not belong together")
    mask = np.concatenate([np.ravel(found[name]).astype(bool) for name in wanted])
    return clean(network, mask, activation), result


def export(
    workdir: Path,
    form: str,
    out: Path,
    overwrite: bool = False,
    bits: int | None = None,
    max_bytes: int | None = None,
) -> list[Path]:
    """Writes the network of a finished run in one of `FORMATS`.

    Args:
      workdir: work directory of the run.
      form: name of the format, a key of `FORMATS`.
      out: file to write; for 'c' and 'c_packed' a folder, created if missing.
      overwrite: whether existing files are replaced.
      bits: bits per kept weight, one of `quantization.WIDTHS`; 32 if neither `bits` nor `max_bytes` is given. The
        formats of other frameworks store the quantized values as float32, so that their files do not get smaller.
      max_bytes: limit on the size of the tables in C, or of the packed file. The bits of each layer, at most 8,
        are then chosen by `choose_bits` on the run's validation split.

    Returns:
      The files that were written.

    Raises:
      InputError: an unknown format; a workdir that holds no finished run; bits or bytes that are not possible; or
        files that exist already. Nothing is written then.
    """
    checks.choice("format", form, FORMATS)
    if max_bytes is not None and form not in BUDGETED:
        raise InputError(f"max_bytes is for the formats {', '.join(BUDGETED)}, not {form!r}: give bits")
    if max_bytes is not None:
        checks.whole("max_bytes", max_bytes, 1)
    if max_bytes is not None and bits is not None:
        raise InputError("give bits or max_bytes, not both")
    in_folder = form in FOLDERS
    for path in [out / name for name in c.NAMES] if in_folder else [out]:
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists; name another, or add --overwrite")
    if in_folder and out.exists() and not out.is_dir():
        raise InputError(f"--out must be a directory: format {form!r} writes several files; {out} is a file")
    if not in_folder and out.is_dir():
        raise InputError(f"--out must be a file: format {form!r} writes one file; {out} is a directory")
    if not in_folder and not out.parent.is_dir():
        raise InputError(f"--out must be in a folder that exists: {out.parent} is not one")
    cleaned, result = read_run(workdir)
    dataset, problem = _dataset(result, cleaned) if in_folder or max_bytes is not None else (None, "")
    if max_bytes is None:
        widths = 32 if bits is None else bits
    elif dataset is None:
        raise InputError(f"max_bytes needs the data of {workdir}: {problem}")
    else:
        widths = _fitting(cleaned, dataset, result["seed"], form, max_bytes)
    made = FORMATS[form](quantize(cleaned, widths), _inputs_of(result, dataset))
    paths = {out / name if in_folder else out: content for name, content in made.items()}
    if in_folder:
        workdirs.make(out)
    for path, content in paths.items():
        workdirs.write_file(path, content)
    for path in {out / name for name in c.NAMES if in_folder} - set(paths):
        path.unlink(missing_ok=True)  # of an earlier export
    return list(paths)


def _fitting(cleaned: Cleaned, dataset: datasets.Dataset, seed: int, form: str, max_bytes: int) -> tuple[int, ...]:
    if form in FOLDERS:
        size, beside = partial(c.table_bytes, forms=c.FORMS if form == "c" else c.PACKED_FORMS), 0
    else:
        size, least = lambda layer: len(packed.layer_bytes(layer)), quantize(cleaned, 1)
        beside = len(packed.pack(least)) - sum(map(size, least.layers))
    key = jax.random.fold_in(jax.random.key(seed), 4)
    return choose_bits(key, cleaned, *dataset.validation, max_bytes, size, beside)


def _dataset(result: Mapping[str, Any], cleaned: Cleaned) -> tuple[datasets.Dataset | None, str]:
    """The data set of a run; or None, and why it cannot be loaded."""
    try:
        dataset = datasets.load_dataset(result["data"], result["input_mean"], result["input_std"])
    except KeyError:
        return None, "the run was made by an earlier version"
    except InputError as error:
        return None, str(error)
    features = cleaned.kernels[0].shape[0]
    if dataset.test.inputs.shape[1] != features:
        return None, f"{result['data']} does not have the {features} inputs of the network"
    return dataset, ""


def _inputs_of(result: Mapping[str, Any], dataset: datasets.Dataset | None) -> c.Inputs | None:
    if not {"input_mean", "input_std"} <= result.keys():
        return None
    mean, std = result["input_mean"], result["input_std"]
    if dataset is None or dataset.image_shape is None:
        return c.Inputs(mean, std, None)
    pixels = dataset.test.inputs * std + mean
    if pixels.min() < -1e-3 or pixels.max() > 1 + 1e-3:
        return c.Inputs(mean, std, None)
    return c.Inputs(mean, std, np.round(255 * pixels[0]).astype(np.uint8).reshape(dataset.image_shape))
