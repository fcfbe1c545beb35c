#!/usr/bin/env bash
# A sweep as a job of a running Ray cluster; the code of this checkout goes along:
#
#   SCPO_SHARED_DIR=/mnt/shared/scpo cluster/submit.sh sweeps/FILE.yaml [--set a.b=VALUE ...]
#
# The same command goes on with a sweep that was stopped. It ends with 0 if the job did, with 1 if
# not (Ray knows no other codes), with 2 if it is refused here. Ctrl-C ends the watching, not the job.
#
#   SCPO_SHARED_DIR   a folder that all machines mount at this path: the command is run there, so
#                     that `runs`, `models/global` or `data/pairs.jsonl` in the sweep lie below it
#   RAY_ADDRESS       the cluster's job server (http://127.0.0.1:8265)
#   RAY_AUTH_TOKEN    or RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token: the cluster's token
set -euo pipefail

refuse() {
    printf 'submit.sh: %s\n' "$@" >&2
    exit 2
}

if (($# == 0)) || [[ $1 == -* ]]; then
    refuse "usage: cluster/submit.sh sweeps/FILE.yaml [--set a.b=VALUE ...]"
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
[[ -f $1 ]] || refuse "$1: no such file"
sweep=$(cd "$(dirname "$1")" && pwd -P)/$(basename "$1")
[[ $sweep == "$root"/* ]] || refuse "$1: must lie in this checkout, which is what goes to the cluster"
sweep=${sweep#"$root"/}
shift
cd "$root"

export RAY_AUTH_MODE=token
address=${RAY_ADDRESS:-http://127.0.0.1:8265}
[[ $address == http?(s)://* ]] ||
    refuse "RAY_ADDRESS = $address: must be the job server, http://HOST:8265"
command -v ray >/dev/null || refuse "no ray command here: activate the environment first"
shared=${SCPO_SHARED_DIR:-}
[[ -z $shared || $shared == /* ]] || refuse "SCPO_SHARED_DIR = $shared: must be an absolute path"

# What a job writes below its own copy of the checkout is lost with it. Asked of the text, not of
# YAML: whoever writes it in another way gives it once more with --set.
place='(^|[[:space:]=])(output_dir:|run\.output_dir=)[[:space:]]*["'\'']?/'
said=$(
    grep -v '^ *#' "$sweep" || true
    printf '%s\n' "$@"
)
if [[ -z $shared && ! $said =~ $place ]]; then
    refuse "$sweep: results would go to the job's copy of this folder and be lost with it; give one of" \
        "  SCPO_SHARED_DIR=/a/folder/that/all/machines/mount  (then relative paths lie below it)" \
        "  --set run.output_dir=/a/folder/that/all/machines/mount"
fi

commit=$(git rev-parse --short HEAD 2>/dev/null || echo none)
if [[ -n $(git status --porcelain 2>/dev/null) ]]; then
    commit=$commit-changed
    echo "submit.sh: uncommitted changes go along" >&2
fi
name=$(basename "$sweep")
name=${name%.*}
id=scpo-${name//[^A-Za-z0-9_-]/-}-$(date -u +%Y%m%d-%H%M%S)-$RANDOM

# Patterns as in .gitignore; a leading slash means this folder alone (scpo_ray/data is code).
# No secret belongs here: the cluster shows a job's environment to all its users.
runtime_env=$(
    cat <<'JSON'
{
  "excludes": [
    "/.git", ".venv", "/runs", "/models", "/data", "/shared", "/build", "/dist", "mlruns",
    "mlflow.db", "__pycache__", "*.egg-info", ".mypy_cache", ".ruff_cache", ".pytest_cache",
    ".hypothesis"
  ],
  "env_vars": {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_JOB_STOP_SIGNAL": "SIGINT",
    "RAY_JOB_STOP_WAIT_TIME_S": "60",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "NO_COLOR": "1",
    "PYTHONUNBUFFERED": "1"
  }
}
JSON
)

cat >&2 <<TEXT
submit.sh: $sweep as job $id, on $address
  follow:  RAY_AUTH_MODE=token ray job logs --address $address --follow $id
  stop:    RAY_AUTH_MODE=token ray job stop --address $address $id
  go on:   this same command
TEXT

# Where it does not write to a terminal, Ray's command would keep the job's lines back until it ends.
export PYTHONUNBUFFERED=1

# The job begins in its copy of the checkout, which is also where Python finds scpo_ray; relative
# paths are then those of the shared folder. The command itself reserves nothing: its trials do.
# shellcheck disable=SC2016
in_job='sweep=$PWD/$1; [ -z "$2" ] || cd "$2" || exit 2; shift 2; exec python -m scpo_ray.cli sweep "$sweep" "$@"'
ray job submit --address "$address" --submission-id "$id" --working-dir "$root" \
    --runtime-env-json "$runtime_env" --entrypoint-num-cpus 0 \
    --metadata-json "{\"sweep\": \"${sweep//[\"\\]/-}\", \"commit\": \"$commit\"}" \
    --log-style record --log-color false \
    -- sh -c "$in_job" scpo "$sweep" "$shared" "$@"
# To Ray a job that was stopped is no failure; to whoever waits for the sweep it is.
status=$(ray job status --address "$address" --log-style record --log-color false "$id" 2>&1) || true
if [[ $status != *"' succeeded"* ]]; then
    printf 'submit.sh: %s\n' "the job did not end well:" "$status" "the same command goes on" >&2
    exit 1
fi
