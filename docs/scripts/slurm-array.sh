#!/bin/sh
#SBATCH --job-name=hires
#SBATCH --array=1-10
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#
# Share the jobs of a file out over the tasks of a Slurm array.
#
#   sbatch --array=1-10 docs/scripts/slurm-array.sh JOBS FOLDER [options of hires batch]
#
# JOBS is what hires batch takes: a file of prompts, JSON lines, CSV or TOML. The array begins at
# 1. Slurm sends SIGTERM two minutes before the end of the time; hires then ends cleanly, and the
# same array again goes on. `exec` puts hires in the place of the shell, so that the signal
# reaches it.
set -eu

jobs=$1
folder=$2
shift 2
mkdir -p "$folder"

task=${SLURM_ARRAY_TASK_ID:?"is set by Slurm; to try it: SLURM_ARRAY_TASK_ID=1 $0 ..."}
count=${SLURM_ARRAY_TASK_MAX:-${SLURM_ARRAY_TASK_COUNT:-1}}
exec hires batch --keep-going --shard "$task/$count" --output-dir="$folder" "$@" -- "$jobs"
