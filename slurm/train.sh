#!/usr/bin/env bash
#SBATCH --job-name=biencoder
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm-%j.out
# One torchrun on every node of the job; whatever follows the file name goes to launcher/train.py.
#
#   sbatch --nodes=4 --gpus-per-node=8 slurm/train.sh --config configs/arguana.toml --data.root /data/arguana
#   sbatch --nodes=2 --export=ALL,PROCS_PER_NODE=2 slurm/train.sh --config configs/quickstart.toml      # CPUs only
#
# Submit it from the project's folder (Slurm copies this file elsewhere, so its own place says nothing). VENV names the
# virtual environment; it must be seen by all nodes.
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
VENV=${VENV:-.venv}
if [ ! -x "$VENV/bin/torchrun" ]; then
  echo "error: no environment $VENV in $SLURM_SUBMIT_DIR: run 'make train' there once, or set VENV to one that all nodes see" >&2
  exit 2
fi
procs=${PROCS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs on one node must not meet at one port
exec srun --kill-on-bad-exit=1 "$VENV/bin/torchrun" \
  --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$procs" \
  --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$head:$port" \
  launcher/train.py "$@"
