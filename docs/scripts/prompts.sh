#!/bin/sh
# Make one image for every line of a file.
#
#   docs/scripts/prompts.sh PROMPTS.txt FOLDER [options of hires batch]
#
# Runs again what is missing: finished images are left as they are. An image that fails does not
# stop the others; the script then ends with 3, or with 1 if none could be made.
set -eu

prompts=$1
folder=$2
shift 2
mkdir -p "$folder"
exec hires batch --keep-going --output-dir="$folder" "$@" -- "$prompts"
