#!/bin/sh
# Fetch the photographs that docs/photographs.md lists, from Debian's package, into a folder.
#
#   docs/scripts/photographs.sh FOLDER [PACKAGE.deb]
#
# Without PACKAGE.deb it is fetched with apt-get, which needs Debian or one of its children.
set -eu

folder=$1
list=$(dirname "$0")/../photographs.md
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ $# -ge 2 ]; then
    package=$2
else
    (cd "$work" && apt-get download endless-sky-data)
    package=$(echo "$work"/endless-sky-data_*.deb)
fi
dpkg-deb -x "$package" "$work/files"
mkdir -p "$folder"
sed -n 's/^| \([a-z0-9]*\.jpg\) .*/\1/p' "$list" | while read -r name; do
    cp "$work/files/usr/share/games/endless-sky/images/land/$name" "$folder/$name"
done
echo "$folder: $(ls "$folder" | wc -l) files"
