#!/bin/sh
# What a model takes on cards of several sizes, as a Markdown table: cards.sh MODEL SIZE...
# Nothing is run; the figures are those of `hires plan --gpu`.
set -eu
model=$1
shift
echo "| card | size | weights on the | GPU memory | host memory | disk | arithmetic |"
echo "|---|---|---|---|---|---|---|"
for gpu in 8GB 12GB 24GB 80GB; do
    for size in "$@"; do
        hires plan --gpu "$gpu" --model "$model" --prompt "a lake" --size "$size" --json |
            python3 -c '
import json, sys

plan = json.load(sys.stdin)
stores, gpu, size = plan["store_bytes"], *sys.argv[1:]
row = [gpu, size + " px", plan["weights"]]
row += ["%.1f GB" % (stores[name] / 1e9) for name in ("device", "host")]
row += ["%.1f GB" % (plan["disk_bytes"] / 1e9), "%.1f PFLOP" % (plan["flops"] / 1e15)]
print("| " + " | ".join(row) + " |")
' "$gpu" "$size"
    done
done
