#!/bin/sh
# Make one image for every line of a file.
#
#   docs/scripts/prompts.sh PROMPTS.txt FOLDER [options of hires generate]
#
# Runs again what is missing: finished images are left as they are. An image that fails does not
# stop the others; the script then ends with 1.
set -u

prompts=$1
folder=$2
shift 2
mkdir -p "$folder"

status=0
while IFS= read -r prompt || [ -n "$prompt" ]; do
    [ -n "$prompt" ] || continue
    # `--prompt=` keeps a prompt that begins with a dash from being read as an option, and
    # `</dev/null` keeps hires from reading the other prompts.
    if ! hires generate --prompt="$prompt" -o "$folder/" "$@" </dev/null; then
        echo "failed: $prompt" >&2
        status=1
    fi
done <"$prompts"
exit "$status"
