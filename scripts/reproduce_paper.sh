#!/usr/bin/env bash
# The paper's experiment, whole: half an hour; with --quick a small part of it, in 5 minutes.
# Goes on where it stopped. Tables and pictures go to scripts/results/paper*, those of --quick to the workdir.
#
#     scripts/reproduce_paper.sh [--quick] [WORKDIR]
set -euo pipefail
usage="usage: scripts/reproduce_paper.sh [--quick] [WORKDIR]"
quick=
workdir=
for argument in "$@"; do
  case $argument in
    --quick) quick=yes ;;
    -*) echo "$usage" >&2; exit 2 ;;
    *) [ -z "$workdir" ] || { echo "$usage" >&2; exit 2; }; workdir=$argument ;;
  esac
done
root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
"$python" -c "import sa_jax" || { echo "sa_jax is not installed: run 'make demo' first" >&2; exit 2; }
compare() { "$python" -c "import sys; from sa_jax.cli import main; sys.exit(main())" compare "$@"; }
main=(--gin_file="$root/configs/paper.gin")
schedules=(--gin_file="$root/configs/paper_schedules.gin")
if [ -n "$quick" ]; then
  small=(
    --gin_bindings="DENSITIES=[0.1,0.02]"
    --gin_bindings="compare.datasets={'mnist':[0.1307,0.3081]}"
    --gin_bindings="compare.hidden=[[300,100]]"
    --gin_bindings="run.num_steps=5_000"
    --gin_bindings="run.num_samples=1_000"
    --gin_bindings="run.pretrain_epochs=2"
  )
  main+=("${small[@]}")
  schedules+=("${small[@]}")
  schedules+=(--gin_bindings="DENSITIES=[0.02]" --gin_bindings="METHODS=['cold_fast','middle_fast','hot_fast']")
  workdir=${workdir:-$root/runs/paper_quick}
  out=$workdir
else
  workdir=${workdir:-$root/runs/paper}
  out=$root/scripts/results
fi
compare "${main[@]}" --workdir="$workdir/main"
compare "${schedules[@]}" --workdir="$workdir/schedules"
"$python" "$root/scripts/paper.py" "$workdir" --out="$out"
