"""Makes the notebooks of colab/ from their .py twins, run from top to bottom, with outputs.

pip install jupytext nbclient ipykernel
python scripts/notebooks.py            # all
python scripts/notebooks.py 06         # those whose names begin so
"""

import sys
from pathlib import Path

COLAB = Path(__file__).resolve().parents[1] / "colab"


def main() -> None:
    """The command line."""
    import jupytext
    import nbclient  # pyright: ignore[reportMissingImports]

    for source in sorted(COLAB.glob(f"{''.join(sys.argv[1:2])}*.py")):
        notebook = jupytext.read(source)
        nbclient.NotebookClient(notebook, timeout=3_600, resources={"metadata": {"path": COLAB}}).execute()
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{number}"  # the same each time
            cell.get("metadata", {}).pop("execution", None)  # times of day
        jupytext.write(notebook, source.with_suffix(".ipynb"), fmt="ipynb")
        print(source.with_suffix(".ipynb").relative_to(COLAB.parent))


if __name__ == "__main__":
    main()
