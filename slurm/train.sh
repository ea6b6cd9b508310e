#!/usr/bin/env bash
#SBATCH --job-name=biencoder
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# One torchrun on every node of the job; whatever follows the file name goes to launcher/train.py.
#
#   sbatch --nodes=4 --gpus-per-node=8 slurm/train.sh --config configs/arguana.toml --data.root /data/arguana
#   sbatch --nodes=2 --export=ALL,PROCS_PER_NODE=2 slurm/train.sh --config configs/quickstart.toml      # CPUs only
#   sbatch --array=0-3 --export=ALL,SWEEP=sweep.txt slurm/train.sh --config configs/arguana.toml
#
# The last one runs once for each of the first four lines of sweep.txt, say `--run.seed 1 --train.lr 1e-5`.
#
# 120 s before its time limit the job saves, goes back into the queue and goes on later; so it does when a node dies, from
# its last checkpoint. A job that fails by itself stays failed. The run is in runs/slurm-JOB, or runs/slurm-ARRAY_TASK,
# unless --run.dir is among the arguments (one in a file does not count).
#
# Submit it from the project's folder (Slurm copies this file elsewhere, so its own place says nothing). VENV names the
# virtual environment. All nodes must see both.
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
if [ ! -f slurm/job.sh ]; then
  echo "error: submit this from the project's folder, not from $SLURM_SUBMIT_DIR" >&2
  exit 2
fi
source slurm/job.sh
prepare torchrun "$@"
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs on one node must not meet at one port
run_or_requeue "$VENV/bin/torchrun" \
  --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$procs" \
  --rdzv-id="$SLURM_JOB_ID-$restart" --rdzv-backend=c10d --rdzv-endpoint="$head:$port" \
  launcher/train.py "${arguments[@]}"
