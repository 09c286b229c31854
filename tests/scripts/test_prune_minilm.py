"""The script that prunes MiniLM, as far as it goes without the model's weights."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import prune_minilm


def test_sentences_are_whole_english_ones_each_once():
    texts = ["A sentence of more than forty letters, all of them plain. Short one.", ">>> code = [1, 2, 3]"]
    texts += ["Another sentence of more than forty letters, over\ntwo lines. " * 2]
    assert prune_minilm.sentences_of(texts) == [
        "A sentence of more than forty letters, all of them plain.",
        "Another sentence of more than forty letters, over two lines.",
    ]


def test_what_is_measured_on_was_not_calibrated_on():
    calibrated, evaluated = prune_minilm.documentation()
    assert len(calibrated) >= prune_minilm.CALIBRATED and len(evaluated) >= prune_minilm.EVALUATED
    assert not set(calibrated) & set(evaluated)


def test_table_holds_means_and_spreads_and_marks_the_best():
    cosines = {"wanda": (0.8, 0.9), "anneal": (0.9, 0.92), "sparsegpt": (0.95, 0.95)}
    rows = [
        {"method": method, "pattern": 0.5, "seed": seed, "cosine": cosine, "cpu_seconds": 3.0}
        for method, values in cosines.items()
        for seed, cosine in enumerate(values)
    ]
    lines = prune_minilm.table(rows).splitlines()
    assert "| Wanda | 0.850 ±0.050 |" in " ".join(lines)
    assert any(line.startswith("| annealed | **0.910** ±0.010 |") and line.endswith("| 3 |") for line in lines)
    assert any(line.startswith("| SparseGPT, weights updated | **0.950** ±0.000 |") for line in lines)


def test_a_folder_without_the_model_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prune_minilm.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        prune_minilm.main()
    assert "has no model.safetensors" in capsys.readouterr().err
