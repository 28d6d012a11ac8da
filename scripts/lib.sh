# Sourced by every script here: strict mode, the repository root, timed steps, what was skipped.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Where rustup puts cargo, for shells that no login file has set up.
command -v cargo >/dev/null || PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

script=$(basename "$0")
script_started=$SECONDS
skipped=()

# True on a CI machine, where what should run and does not is a failure.
in_ci() { [[ ${CI:-} == true ]]; }

say() { printf '%s\n' "$*"; }

fail() {
    printf '%s: error: %s\n' "$script" "$*" >&2
    exit 1
}

# step NAME COMMAND...: runs a command and says how long it took. A failing one ends the script.
step() {
    local name=$1 started=$SECONDS
    shift
    say "==> $name"
    "$@" || fail "$name failed: $*"
    say "    $name: $((SECONDS - started)) s"
}

# skip WHAT WHY: said at once, and again at the end.
skip() {
    skipped+=("$1: $2")
    say "==> skipped: $1: $2"
}

# The features of the crate, one a line, without `default`.
features() {
    awk '/^\[/ { on = ($0 == "[features]") } on && /^[a-z0-9_-]+ *=/ && $1 != "default" { print $1 }' Cargo.toml
}

# finish TEXT: repeats what was skipped; the last line says how it went.
finish() {
    local what
    for what in "${skipped[@]+"${skipped[@]}"}"; do
        say "$script: skipped: $what"
    done
    say "$script: $1 (${#skipped[@]} skipped, $((SECONDS - script_started)) s)"
}
