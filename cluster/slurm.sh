#!/usr/bin/env bash
# One command on a Ray cluster of its own, on the machines of one Slurm job:
#
#   sbatch --nodes=4 --gpus-per-node=2 --cpus-per-task=16 --time=12:00:00 cluster/slurm.sh \
#     scpo sweep sweeps/FILE.yaml --set run.output_dir=/shared/runs \
#     --set run.tracking.uri=http://YOUR-MLFLOW:5000
#
# Before the time is up the command gets Ctrl-C's signal, Ray ends, and the job goes back into the
# queue, where the same command goes on; so too after a preemption or a lost machine. A command that
# ends by itself ends the job, with its exit code. `scancel JOB` ends it for good.
#
#   SCPO_MAX_REQUEUES     how often it queues itself again (20; 0: never)
#   SCPO_STOP_WAIT_S      seconds the command has to stop (120; below --signal's)
#   SCPO_START_WAIT_S     seconds the machines have to join (300)
#   SCPO_RAY_PORT         the head's port (by the job's number)
#   SCPO_HEAD_IP          the first machine's address (the first of `hostname -I`)
#
#SBATCH --job-name=scpo
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
#SBATCH --signal=B:USR1@180
set -euo pipefail
# Each child leads a process group: it can be sent Ctrl-C's signal, which a shell's background
# processes otherwise ignore.
set -m

if (($# == 0)) || [[ -z ${SLURM_JOB_ID:-} ]]; then
    echo "usage: sbatch [options] cluster/slurm.sh COMMAND [ARGUMENT ...]" >&2
    exit 2
fi
if [[ -z ${VIRTUAL_ENV:-} && -f .venv/bin/activate ]]; then
    # shellcheck source=/dev/null
    source .venv/bin/activate
fi

say() { echo "slurm.sh: $(date -u +%H:%M:%S) $*"; }

attempt=${SLURM_RESTART_COUNT:-0}
port=${SCPO_RAY_PORT:-$((20000 + SLURM_JOB_ID % 6000 * 2))}
ip=${SCPO_HEAD_IP:-$(hostname -I | cut -d ' ' -f 1)}
temp=/tmp/ray-$SLURM_JOB_ID-$attempt
# Whoever reaches Ray's ports can run code here. The token lives as long as this attempt, in the
# environment of its processes alone.
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=0.2 TOKENIZERS_PARALLELISM=false
export NO_COLOR=1 HF_HUB_DISABLE_PROGRESS_BARS=1
# A machine that is told to end has nothing to hand over: the command has ended before.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# A step on some of the job's machines, with all that the job has there.
on_machines() {
    srun --quiet --overlap --cpu-bind=none --kill-on-bad-exit=0 --ntasks-per-node=1 "$@"
}

# Expanded on each machine: the CPUs that Slurm gave the job there, not those the machine has.
# shellcheck disable=SC2016
ray_start='mkdir -p "$0" && exec >>"$0/start.log" 2>&1 &&
    exec ray start --block --temp-dir="$0" --num-cpus="$SLURM_CPUS_ON_NODE" "$@"'

steps=()
end_ray() {
    trap '' USR1 TERM INT
    ((${#steps[@]})) || return 0
    # To this job's steps, and not to this script, which is none: never to another's Ray.
    scancel --quiet --signal=TERM "$SLURM_JOB_ID" || true
    for _ in {1..30}; do
        kill -0 "${steps[@]}" 2>/dev/null || break
        sleep 1
    done
    for step in "${steps[@]}"; do
        kill -TERM "$step" 2>/dev/null || true # srun then kills what is left of its step
        wait "$step" || true
    done
    say "Ray has ended"
}
trap end_ray EXIT
stop=""
trap 'stop=requeue' USR1
trap 'stop=cancel' TERM INT

say "attempt $attempt on $SLURM_JOB_NUM_NODES machines, the head at $ip:$port"
on_machines --nodes=1 --ntasks=1 --nodelist="$head" bash -c "$ray_start" "$temp" --head \
    --node-ip-address="$ip" --port="$port" --dashboard-port="$((port + 1))" &
steps+=($!)
export RAY_ADDRESS=$ip:$port

machines_there() { ray status --address "$RAY_ADDRESS" 2>/dev/null | grep -cE '^ *1 node_' || true; }
joined() {
    local deadline=$((SECONDS + ${SCPO_START_WAIT_S:-300})) there=0
    until ((there >= $1)); do
        if [[ $stop ]] || ((SECONDS > deadline)) || ! kill -0 "${steps[0]}" 2>/dev/null; then
            say "$there of $1 machines have joined; $temp/start.log on each says why. The head's:"
            tail -n 20 "$temp/start.log" || true
            exit 1
        fi
        sleep 1 || true
        there=$(machines_there)
    done
}
joined 1
if ((SLURM_JOB_NUM_NODES > 1)); then
    others=$((SLURM_JOB_NUM_NODES - 1))
    # --no-kill: one machine that goes does not end the others.
    on_machines --nodes="$others" --ntasks="$others" --exclude="$head" --no-kill \
        bash -c "$ray_start" "$temp" --address="$RAY_ADDRESS" &
    steps+=($!)
    joined "$SLURM_JOB_NUM_NODES"
fi

say "starting: $*"
"$@" &
command=$!
stop_by=""
while kill -0 "$command" 2>/dev/null; do
    if ! kill -0 "${steps[0]}" 2>/dev/null && [[ ! $stop ]]; then
        say "the head of Ray has ended; stopping the command"
        stop=failed
    fi
    if [[ $stop && ! $stop_by ]]; then
        say "stopping the command ($stop)"
        kill -INT -- "-$command" 2>/dev/null || true
        stop_by=$((SECONDS + ${SCPO_STOP_WAIT_S:-120}))
    elif [[ $stop ]] && ((SECONDS > stop_by)); then
        kill -KILL -- "-$command" 2>/dev/null || true
    fi
    sleep 1 || true
done
code=0
wait "$command" || code=$?
say "the command has ended with code $code"
end_ray
trap - EXIT

again=""
if [[ $stop == requeue ]] && ((code != 0 && attempt < ${SCPO_MAX_REQUEUES:-20})); then
    again=yes
fi
if ((code == 0)) || [[ $again ]]; then
    # Ray's logs; a failure leaves them for whoever looks into it.
    on_machines --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" rm -rf -- "$temp" || true
fi
if [[ $again ]]; then
    say "back into the queue; the same command goes on"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
