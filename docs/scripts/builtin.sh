#!/bin/sh
# Make the built-in model from nothing: render, train both parts, distil linear attention, export.
#
#   docs/scripts/builtin.sh FOLDER [PHOTOGRAPHS]
#
# FOLDER holds everything on the way and the finished weights, FOLDER/weights. PHOTOGRAPHS is a
# folder of them, a minority of what the autoencoder sees. A call that was cut off goes on where it
# was when it is made again. Trainings use a GPU if there is one; these turn them to a machine:
#
#   SHARDS=48       shards of whole compositions to render; of near views three quarters as many
#   SHARPEN=1900    steps of the autoencoder
#   STEPS=14000     of the denoiser
#   SCALE=1         of its batches; 4 fills a large GPU
#   DISTIL=600      steps of the distillation
set -eu

folder=$1
photographs=${2:+$(cd "$2" && pwd)}
near=$(((${SHARDS:-48} + 3) / 4)) # shards of each kind of near views
mkdir -p "$folder"
cd "$folder"

hires train render held-out --held-out --wide 1 --crop 0 --close 1 --detail 1
hires train render shards --wide "${SHARDS:-48}" --crop "$near" --close "$near" --detail "$near"
if [ -n "$photographs" ] && [ ! -e photographs.done ]; then
    hires train photographs "$photographs" shards --held-out held-out
    touch photographs.done
fi
hires train autoencoder shards autoencoder.pt --held-out held-out --steps "${SHARPEN:-1900}"
hires train denoiser shards denoiser.pt --autoencoder autoencoder.pt \
    --steps "${STEPS:-14000}" --batch-scale "${SCALE:-1}"
# A distillation on other shards or of other length is another.
settings="${SHARDS:-48} shards, ${DISTIL:-600} steps"
if [ -e distilled.txt ] && [ "$(cat distilled.txt)" != "$settings" ]; then
    rm -rf linfusion.run
fi
echo "$settings" >distilled.txt
# Of a denoiser that was trained on since, the teacher is another, and so is what it teaches.
if [ ! -e teacher/SHA256SUMS ] || [ -n "$(find denoiser.pt -newer teacher/SHA256SUMS)" ]; then
    rm -rf linfusion.run
    hires train export teacher --autoencoder autoencoder.pt --denoiser denoiser.pt
fi
hires distill linfusion -m teacher --data shards -o linfusion --steps "${DISTIL:-600}" --decay
hires train export weights --autoencoder autoencoder.pt --denoiser denoiser.pt --adapter linfusion
