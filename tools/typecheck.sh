#!/usr/bin/env bash
# Type-check the whole package with mypy --strict.
#
# store/ and kernels/ live beside tokendance/ and install inside it. mypy reads paths, not the import hook of an
# editable install, so it is shown a folder of links laid out as the installed package is.
# Extra arguments go to mypy. PYTHON chooses the interpreter that has mypy (default: python).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python}
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT

mkdir "$tree/tokendance"
for entry in "$root"/tokendance/*; do
    case $(basename "$entry") in
        __pycache__ | store | kernels) ;;
        *) ln -s "$entry" "$tree/tokendance/" ;;
    esac
done
ln -s "$root/store" "$root/kernels" "$tree/tokendance/"

# From inside the tree: run from the checkout, mypy would find the bare tokendance/ folder first.
cd "$tree"
MYPYPATH="$tree" "$python" -m mypy --strict --config-file "$root/pyproject.toml" \
    --cache-dir "$root/.mypy_cache" "$@" -p tokendance
