#!/bin/sh
# Make the pictures of the docs with the program itself: one JPEG for every line of a list, and a
# contact sheet of them.
#
#   docs/scripts/pictures.sh [FOLDER] [options of hires generate]
#
# FOLDER is docs/images if it is not given. The environment chooses the rest:
#
#   LIST        file of lines "NAME SEED PROMPT"; without it, the list below
#   SIZE        size of the pictures, as --size takes it (512)
#   CELL_PX     side of a picture on the sheet, in pixels (256)
#   PER_ROW     pictures in a row of the sheet (4)
#   PYTHON      an interpreter with Pillow (python3)
#
# Pictures that are there are made again: a model that has learned more draws another picture
# from the same recipe.
set -eu

folder=docs/images
case ${1-} in
'' | -*) ;;
*)
    folder=$1
    shift
    ;;
esac
size=${SIZE:-512}
mkdir -p "$folder"

pictures() {
    if [ -n "${LIST-}" ]; then
        cat "$LIST"
        return
    fi
    cat <<'END'
mountains 1 snowy mountains above a lake at sunset
dunes 2 golden sand dunes at dawn
canyon 3 a red rock canyon at sunset, sun in the middle
aurora 6 green aurora over mountains at night, a lake in front
sea 7 the sea in a storm, high waves
sky 8 a sky with clouds at sunset, towering clouds
planet 11 a red rocky planet, lit from the left
islands 12 islands from above, turquoise sea, many islands
END
}

names=$(mktemp)
trap 'rm -f "$names"' EXIT
pictures | while read -r name seed prompt; do
    [ -n "$prompt" ] || continue
    # `</dev/null` keeps hires from reading the rest of the list.
    hires generate --prompt="$prompt" --seed "$seed" --size "$size" --overwrite \
        -o "$folder/$name.jpg" "$@" </dev/null
    printf '%s\n' "$folder/$name.jpg" >>"$names"
done

"${PYTHON:-python3}" - "$names" "$folder/sheet.jpg" "${CELL_PX:-256}" "${PER_ROW:-4}" <<'END'
import sys
from pathlib import Path

from PIL import Image

names, sheet_path, cell, per_row = sys.argv[1:]
cell, per_row = int(cell), int(per_row)
paths = Path(names).read_text(encoding="utf-8").splitlines()
columns, rows = min(per_row, len(paths)), -(-len(paths) // per_row)
sheet = Image.new("RGB", (columns * cell, rows * cell))
for index, path in enumerate(paths):
    row, column = divmod(index, per_row)
    with Image.open(path) as picture:
        sheet.paste(picture.resize((cell, cell), Image.Resampling.LANCZOS), (column * cell, row * cell))
sheet.save(sheet_path, quality=88, optimize=True)
print(sheet_path)
END
