# Sourced by every script here: strict mode, the repository root, timed steps, what was skipped.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Where rustup puts cargo, for shells that no login file has set up.
command -v cargo >/dev/null || PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

script=$(basename "$0")
script_started=$SECONDS
skipped=()
# Deleted with its content when the script ends.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# True on a CI machine, where a skipped backend is a failure.
in_ci() { [[ ${CI:-} == true ]]; }

say() { printf '%s\n' "$*"; }

fail() {
    printf '%s: error: %s\n' "$script" "$*" >&2
    exit 1
}

# step NAME COMMAND...: runs a command and reports its time. A failure ends the script.
step() {
    local name=$1 started=$SECONDS
    shift
    say "==> $name"
    "$@" || fail "$name failed: $*"
    say "    $name: $((SECONDS - started)) s"
}

# skip WHAT WHY: reported now, and again at the end.
skip() {
    skipped+=("$1: $2")
    say "==> skipped: $1: $2"
}

# install WHAT PACKAGES...: with apt-get. If that is impossible, reports it and returns false; a
# failure on a CI machine.
install() {
    local what=$1 as_root=(env) why=""
    shift
    if ! command -v apt-get >/dev/null; then
        why="no apt-get to install $* with"
    elif [[ $(id -u) != 0 ]]; then
        as_root=(sudo -n)
        sudo -n true 2>/dev/null || why="neither root nor sudo without a password, to install $* with"
    fi
    if [[ -z $why ]]; then
        say "==> install $what"
        "${as_root[@]}" apt-get update -qq &&
            "${as_root[@]}" DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null &&
            return
        why="apt-get could not install $*"
    fi
    in_ci && fail "$what: $why"
    skip "$what" "$why"
    return 1
}

# wgpu adapters without a graphics card: Mesa's llvmpipe with its own tier and the baseline tier,
# and SwiftShader of Debian's chromium (no f16, subgroups of 4).
adapters=(lavapipe lavapipe-baseline swiftshader)

# The description of an adapter's Vulkan driver, or nothing.
driver_of() {
    local file
    case $1 in
        lavapipe*) compgen -G '/usr/share/vulkan/icd.d/lvp_icd*.json' | head -n 1 || true ;;
        swiftshader)
            file=/usr/lib/chromium/libvk_swiftshader.so
            [[ -e $file ]] || return 0
            # The installed file has a relative library path, which loaders read in different ways.
            printf '{"file_format_version": "1.0.0", "ICD": {"library_path": "%s", "api_version": "1.0.5"}}\n' "$file" >"$scratch/swiftshader.json"
            say "$scratch/swiftshader.json"
            ;;
    esac
}

# on_adapter ADAPTER NAME COMMAND...: a step on one of `adapters`; skips an absent one, which fails
# on a CI machine.
on_adapter() {
    local adapter=$1 name=$2 driver tier=""
    shift 2
    driver=$(driver_of "$adapter")
    if [[ -z $driver ]]; then
        in_ci && fail "$adapter should be on this machine and is not"
        skip "$name on $adapter" "no such driver; scripts/setup and scripts/web-test install them"
        return
    fi
    [[ $adapter == lavapipe-baseline ]] && tier=baseline
    VK_DRIVER_FILES=$driver XATTN_WGPU_ADAPTER="" XATTN_WGPU_TIER=$tier XDG_RUNTIME_DIR=$scratch step "$name on $adapter" "$@"
}

# The command that all scripts build: with every backend, so that they share one build.
command_features=wgpu,cuda

# Cargo's target folder.
target_folder() {
    local folder=${CARGO_TARGET_DIR:-target}
    [[ $folder == /* ]] || folder=$PWD/$folder
    say "$folder"
}

# The folder of CUDA's compiler that `scripts/setup --cuda-tools` installed, or nothing.
cuda_tools() {
    local folder
    for folder in "$(target_folder)"/cuda-tools/lib/python3*/site-packages/nvidia/cu13; do
        # The list is copied last, so it is that of the installed tools.
        if [[ -x $folder/bin/nvdisasm ]] && cmp -s scripts/cuda-tools.txt "$(target_folder)/cuda-tools/installed.txt"; then
            say "$folder"
        fi
    done
}

# The features of the crate without `default`, one per line.
features() {
    awk '/^\[/ { on = ($0 == "[features]") } on && /^[a-z0-9_-]+ *=/ && $1 != "default" { print $1 }' Cargo.toml
}

# finish TEXT: repeats the skipped steps; the last line is the result.
finish() {
    local what
    for what in "${skipped[@]+"${skipped[@]}"}"; do
        say "$script: skipped: $what"
    done
    say "$script: $1 (${#skipped[@]} skipped, $((SECONDS - script_started)) s)"
}
