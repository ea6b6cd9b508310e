#!/usr/bin/env bash
#SBATCH --job-name=biencoder
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm-%j.out
# The same job as train.sh under DeepSpeed's launcher, started once on every node: no ssh between the nodes, no MPI.
#
#   sbatch --nodes=4 --gpus-per-node=8 slurm/deepspeed.sh --config configs/arguana.toml --data.root /data/arguana
#   sbatch --nodes=2 --export=ALL,PROCS_PER_NODE=2 slurm/deepspeed.sh --config configs/quickstart.toml      # CPUs only
#
# Submit it from the project's folder. VENV names the virtual environment; it must be seen by all nodes, and so must the
# project's folder, where the job keeps a list of its nodes while it runs.
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
export VENV=${VENV:-.venv}
if [ ! -x "$VENV/bin/deepspeed" ]; then
  echo "error: no environment $VENV in $SLURM_SUBMIT_DIR: run 'make train' there once, or set VENV to one that all nodes see" >&2
  exit 2
fi
procs=${PROCS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
export HOSTFILE=$SLURM_SUBMIT_DIR/slurm-$SLURM_JOB_ID.hosts
trap 'rm -f "$HOSTFILE"' EXIT
scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/ slots=$procs/" >"$HOSTFILE"
MASTER_ADDR=$(sed -n '1s/ .*//p' "$HOSTFILE")
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) # two jobs on one node must not meet at one port
export MASTER_ADDR MASTER_PORT
# On each node: DeepSpeed numbers the GPUs it starts on from 0; `env` gives every rank back the ones that Slurm has chosen.
srun --kill-on-bad-exit=1 bash -c '
  exec "$VENV/bin/deepspeed" --no_ssh --hostfile="$HOSTFILE" --node_rank="$SLURM_NODEID" \
    --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" --no_python --no_local_rank \
    env ${CUDA_VISIBLE_DEVICES:+CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES} "$VENV/bin/python" -u launcher/train.py "$@"
' deepspeed "$@"
