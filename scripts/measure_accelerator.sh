#!/usr/bin/env bash
# Measures annealing on this machine's GPU or TPU, or else on its CPU; at most 8 minutes. See measure_accelerator.py.
#
#     scripts/measure_accelerator.sh [--quick] [--seconds=480] [--out=FILE.json]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
"$python" -c "import sa_jax" || { echo "sa_jax is not installed: run 'make demo' first" >&2; exit 2; }
exec "$python" "$root/scripts/measure_accelerator.py" "$@"
