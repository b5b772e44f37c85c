#!/bin/sh
#SBATCH --job-name=hires
#SBATCH --array=1-10
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#
# Make the image of one line of a file in each task of a Slurm array.
#
#   sbatch --array=1-$(wc -l <PROMPTS.txt) docs/scripts/slurm-array.sh PROMPTS.txt FOLDER [options]
#
# Slurm sends SIGTERM two minutes before the end of the time; hires then ends cleanly. `exec`
# puts hires in the place of the shell, so that the signal reaches it.
set -eu

prompts=$1
folder=$2
shift 2
mkdir -p "$folder"

task=${SLURM_ARRAY_TASK_ID:?"is set by Slurm; to try it: SLURM_ARRAY_TASK_ID=1 $0 ..."}
prompt=$(sed -n "${task}p" "$prompts")
exec hires generate --prompt="$prompt" --seed "$task" -o "$folder/" "$@" </dev/null
