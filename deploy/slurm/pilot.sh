#!/bin/bash
# A pilot: a Slurm job that runs Lamplighter's runner, and through it jobs, until there is nothing to do.
# `lamplighter power-driver slurm` submits it. Adapt the options of #SBATCH to your cluster.
#SBATCH --gres=gpu:1
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --output=/tmp/lamplighter-pilot-%j.log
# --signal: two minutes before the time limit the runner claims nothing more, stops its job and gives it back to the
# queue at no cost to the job. A preempted pilot (`scancel --signal=TERM --batch`) does the same.
set -euo pipefail

: "${LAMPLIGHTER_HOST:?set it: the edge does so, by \`lamplighter power-driver slurm\`}"
token=${PILOT_TOKEN:-$HOME/.config/lamplighter/pilot.token} # of `lamplighter hosts token --token-only`
images=${PILOT_IMAGES:-$HOME/images}                               # folders with an endpoint.toml each
scratch=$(mktemp -d "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/lamplighter-$SLURM_JOB_ID.XXXXXX") # a killed pilot leaves its own
chmod 711 "$scratch" # jobs may run as another user
trap 'rm -rf "$scratch"' EXIT

export LAMPLIGHTER_DATA=$scratch LAMPLIGHTER_ENGINE=process
export LAMPLIGHTER_GRACE_S=${LAMPLIGHTER_GRACE_S:-10} # for a job to end by itself before it is stopped
# A sandbox for each job, where this node has bubblewrap and allows user namespaces.
export LAMPLIGHTER_PROCESS__SANDBOX=${LAMPLIGHTER_PROCESS__SANDBOX:-auto}
# Without a sandbox, several jobs in one pilot see the files of each other.
export LAMPLIGHTER_SLOTS=${LAMPLIGHTER_SLOTS:-1}

# When Slurm ends this job: the runner starts no job that may run longer. Slurm before 23.02 sets no variable.
if [ -z "${SLURM_JOB_END_TIME:-}" ] && end=$(squeue --noheader --job="$SLURM_JOB_ID" --format=%e) &&
  end=$(date --date="$end" +%s 2>/dev/null); then
  export SLURM_JOB_END_TIME=$end
fi

# bash hands TERM on, and waits for the runner to end.
lamplighter runner --config /dev/null --join "@$token" --endpoints "$images" --until-idle "${PILOT_UNTIL_IDLE_S:-60}" &
runner=$!
trap 'kill -TERM $runner 2>/dev/null || true' TERM INT
code=0
while kill -0 $runner 2>/dev/null; do
  wait $runner && code=0 || code=$?
done
[ $code -lt 128 ] || { wait $runner && code=0 || code=$?; } # the wait before was interrupted by the signal
exit $code
