#!/bin/sh
# Publish: audit, release, verify, look. Usage: sh recipes/tutorials/publish.sh [DIR]    after new_city.sh.
set -eu
OUT=${1:-out/tutorial}

# Exit 3: released with findings, which stand in its card. A second release of the same version with other bytes is
# refused: give it a new number.
sgdata release my-city 1.0 --from "$OUT/shards" --build "$OUT/build" --out "$OUT/release" --catalog "$OUT/release" \
    --archive || test $? = 3
sgdata verify "$OUT/release/my-city-1.0"
sgdata audit "$OUT/release/my-city-1.0" || test $? = 3
sgdata show "$OUT/release/my-city-1.0"
