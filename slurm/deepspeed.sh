#!/usr/bin/env bash
#SBATCH --job-name=biencoder
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# The same job as train.sh, which see, under DeepSpeed's launcher: started once on every node, without ssh or MPI.
#
#   sbatch --nodes=4 --gpus-per-node=8 slurm/deepspeed.sh --config configs/arguana.toml --data.root /data/arguana
#   sbatch --nodes=2 --export=ALL,PROCS_PER_NODE=2 slurm/deepspeed.sh --config configs/quickstart.toml      # CPUs only
#
# While the job runs, it keeps a list of its nodes in the project's folder.
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
if [ ! -f slurm/job.sh ]; then
  echo "error: submit this from the project's folder, not from $SLURM_SUBMIT_DIR" >&2
  exit 2
fi
source slurm/job.sh
prepare deepspeed "$@"
export HOSTFILE=$SLURM_SUBMIT_DIR/slurm-$SLURM_JOB_ID.hosts
trap 'rm -f "$HOSTFILE"' EXIT
scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/ slots=$procs/" >"$HOSTFILE"
MASTER_ADDR=$(sed -n '1s/ .*//p' "$HOSTFILE")
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) # two jobs on one node must not meet at one port
export MASTER_ADDR MASTER_PORT
# On each node: DeepSpeed numbers the GPUs it starts on from 0; `env` gives every rank back the ones that Slurm has chosen.
run_or_requeue bash -c '
  exec "$VENV/bin/deepspeed" --no_ssh --hostfile="$HOSTFILE" --node_rank="$SLURM_NODEID" \
    --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" --no_python --no_local_rank \
    env ${CUDA_VISIBLE_DEVICES:+CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES} "$VENV/bin/python" -u launcher/train.py "$@"
' deepspeed "${arguments[@]}"
