# Sourced by train.sh and deepspeed.sh: what a job does around its launcher. Not a job by itself.
#
# prepare PROGRAM ARGUMENT...   sets VENV, procs (ranks a node), restart, and arguments (for launcher/train.py)
# run_or_requeue COMMAND...     runs the command once on every node; exits as it does, or puts the job back into the queue

prepare() {
  export VENV=${VENV:-.venv}
  if [ ! -x "$VENV/bin/$1" ]; then
    fail "no environment $VENV in $SLURM_SUBMIT_DIR: run 'make train' there once, or set VENV to one that all nodes see"
  fi
  procs=${PROCS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
  restart=${SLURM_RESTART_COUNT:-0}
  local job=$SLURM_JOB_ID swept=()
  if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    if [ -n "${SWEEP:-}" ]; then
      local line
      line=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$SWEEP") || fail "the sweep's file $SWEEP cannot be read"
      if [ -z "$line" ]; then
        fail "task $SLURM_ARRAY_TASK_ID of the array wants line $((SLURM_ARRAY_TASK_ID + 1)) of $SWEEP, which is empty"
      fi
      read -r -a swept <<<"$line"
    fi
  fi
  # The same folder after every restart. Of two settings of a key the later one counts.
  arguments=(--run.dir "runs/slurm-$job" "${@:2}" "${swept[@]}")
}

run_or_requeue() {
  local asked=no woken=yes code=0 srun started
  started=$(date +%Y-%m-%dT%H:%M:%S)
  # Who ignores a signal hands that on to what it starts: launchers would die of USR1, the ranks set a handler of their own.
  srun --kill-on-bad-exit=1 bash -c 'trap "" USR1; exec "$@"' bash "$@" &
  srun=$!
  trap 'woken=yes asked=yes; pass_on $srun' USR1
  trap 'woken=yes; pass_on $srun' TERM # scancel, preemption: Slurm knows whether the job comes back
  while [ $woken = yes ]; do # a signal ends `wait`, not srun
    woken=no code=0
    wait $srun || code=$?
  done
  trap '' USR1 TERM
  [ $code != 0 ] || exit 0
  if [ $asked = yes ]; then # launchers do not hand on the ranks' own exit code
    requeue "the time is up"
  elif ! timeout 60 srun --overlap --quiet true; then
    requeue "a node no longer answers"
  elif back_since "$started"; then
    requeue "a node has been away"
  fi
  exit $code
}

# Whether a node's daemon has started since then. Slurm's own requeue misses a node that is back before it counts as down.
back_since() {
  local starts
  starts=$(scontrol show node "$SLURM_JOB_NODELIST" | sed -n 's/.*SlurmdStartTime=\([^ ]*\).*/\1/p' | sort | tail -n 1)
  [[ $starts > $1 ]]
}

# A job that was cancelled meanwhile stays so. One that never gets any further is ended by launcher/train.py itself.
requeue() {
  if [ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" = RUNNING ]; then
    echo "$1: job $SLURM_JOB_ID goes back into the queue, and on from its last checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
  fi
}

# USR1 to all ranks, until the step has ended: a rank that is still starting does not listen yet.
pass_on() {
  while kill -0 "$1" 2>/dev/null; do
    scancel --quiet --signal=USR1 "$SLURM_JOB_ID.0" || true
    sleep 5
  done &
}

fail() {
  echo "error: $1" >&2
  exit 2
}
