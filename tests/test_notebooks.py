"""Each notebook has the cells of its .py file, its twin; each twin runs from top to bottom in its tiny form."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import minilm

ROOT = Path(__file__).parents[1]
TWINS = sorted((ROOT / "colab").glob("*.py"))
WIDTH = 48


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A folder with MiniLM's layers, but narrow and with random weights, and a tokenizer with a few words."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra minilm is not installed")
    folder, random = tmp_path_factory.mktemp("model"), np.random.default_rng(0)
    words = ["[PAD]", "[UNK]", "the", "a", "is", "of", "to", "and", "in", "return", "if", "for", "function"]
    sizes = {"word_embeddings": len(words), "position_embeddings": 64, "token_type_embeddings": 2}
    shapes = {f"embeddings.{name}.weight": (size, WIDTH) for name, size in sizes.items()}
    for name in minilm.LINEAR:
        wide_out = name.endswith("intermediate.dense")
        wide_in = name.split(".")[3:] == ["output", "dense"]
        shapes[f"{name}.weight"] = (4 * WIDTH if wide_out else WIDTH, 4 * WIDTH if wide_in else WIDTH)
        shapes[f"{name}.bias"] = shapes[f"{name}.weight"][:1]
    norms = [
        f"encoder.layer.{i}.{part}" for i in range(minilm.NUM_LAYERS) for part in ("attention.output", "output")
    ]
    for name in ("embeddings", *norms):
        shapes |= {f"{name}.LayerNorm.{part}": (WIDTH,) for part in ("weight", "bias")}
    arrays = {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(arrays, folder / "model.safetensors")
    known = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    known.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    known.save(str(folder / "tokenizer.json"))
    return folder


def test_there_are_notebooks():
    assert TWINS


@pytest.mark.parametrize("twin", TWINS, ids=lambda path: path.stem)
def test_a_notebook_has_the_cells_of_its_twin(twin):
    jupytext = pytest.importorskip("jupytext")
    cells = jupytext.read(twin).cells
    notebook = json.loads(twin.with_suffix(".ipynb").read_text())
    found = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert found == [(cell.cell_type, cell.source) for cell in cells]
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code) and any(cell["outputs"] for cell in code)
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] != "error"


@pytest.mark.parametrize("twin", TWINS, ids=lambda path: path.stem)
def test_a_notebook_opens_in_colab(twin):
    badge = f"blob/main/colab/{twin.stem}.ipynb)"
    assert badge in twin.read_text() and badge in (ROOT / "README.md").read_text()
    (install,) = [line for line in twin.read_text().splitlines() if "pip install" in line]
    assert (
        '"sa_jax' in install and " -U" not in install and " jax" not in install
    )  # the installed JAX version stays


@pytest.mark.slow
@pytest.mark.parametrize("twin", TWINS, ids=lambda path: path.stem)
def test_a_notebook_runs(twin, request, tmp_path):
    environment = os.environ | {"SA_JAX_TINY": "1", "MPLBACKEND": "agg"}
    if "transformer" in twin.stem:
        environment["SA_JAX_MINILM"] = str(request.getfixturevalue("model"))
    done = subprocess.run(
        [sys.executable, str(twin)], env=environment, cwd=ROOT / "colab", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stdout


@pytest.mark.slow
def test_minilm_is_pruned_by_every_method(model, monkeypatch):
    import prune_minilm

    for name, value in (("SEEDS", (0,)), ("CALIBRATED", 64), ("EVALUATED", 64), ("SWEEPS", 0.01)):
        monkeypatch.setattr(prune_minilm, name, value)
    for name, value in (("NUM_LAYERS", 2), ("LINEAR", minilm.LINEAR[:12])):  # two of its six blocks
        monkeypatch.setattr(minilm, name, value)
    rows = prune_minilm.measure(model, 0.5)
    assert {row["method"] for row in rows} == set(prune_minilm.LABELS)
    assert all(row["kept"] == pytest.approx(0.5, abs=0.02) and -1 <= row["cosine"] <= 1 for row in rows)
    errors = {row["method"]: row["layer_error"] for row in rows}
    assert errors["anneal_refit"] < errors["anneal"] < errors["wanda"] < errors["magnitude"]
    with pytest.raises(SystemExit, match="have cosine"):
        prune_minilm.check_model(model)
