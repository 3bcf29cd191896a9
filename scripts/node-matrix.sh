#!/usr/bin/env bash
# Runs the tests under every supported Node major. The binaries come from npm (packages without install scripts, so
# npm 12 asks for no approval) and stay in npx's cache. Arguments go to Jest. NODES chooses the versions:
#   NODES="20.19.0 24" scripts/node-matrix.sh test/worker
set -euo pipefail
cd "$(dirname "$0")/.."

package="$(node -p '`node-${process.platform === "win32" ? "win" : process.platform}-${process.arch}`')"
failed=()

# 20 is spelled out because that package's plain "20" is not the latest 20.
for version in ${NODES:-20.20.2 22 24 26}; do
  run=(npx -y -p "$package@$version" -- node)
  printf '\n== Node %s\n' "$("${run[@]}" --version)"
  "${run[@]}" --experimental-vm-modules --disable-warning=ExperimentalWarning node_modules/jest/bin/jest.js "$@" ||
    failed+=("$version")
done

[ ${#failed[@]} -eq 0 ] || { echo "failed on Node ${failed[*]}" >&2; exit 1; }
