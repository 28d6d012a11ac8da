# Sourced by scripts/emulated-cuda: builds the stand-ins, and runs commands with them.
# shellcheck shell=bash

: "${XATTN_EMULATOR_SEED:=$RANDOM$RANDOM}"
export XATTN_EMULATOR_SEED

emulator_sources=tests/cuda_emulator
emulator_target=$(target_folder)/cuda-emulator

# Fused multiply-add and half floats as on the device where this machine has them; slower without.
machine_flags() {
    grep -qw avx2 /proc/cpuinfo && grep -qw fma /proc/cpuinfo && grep -qw f16c /proc/cpuinfo && printf '%s\n' -mavx2 -mfma -mf16c
    true
}

sanitizer_flags() {
    case $1 in
        address | thread) printf '%s\n' "-fsanitize=$1" -g1 ;;
        undefined) printf '%s\n' -fsanitize=undefined -fno-sanitize-recover=undefined -g1 ;;
    esac
}

# build_emulator SANITIZER: the folder of the stand-ins, built when their sources or flags have
# changed.
build_emulator() {
    local sanitizer=$1 folder=$emulator_target/${1:-plain} stamp library
    local flags=(g++ -std=gnu++17 -O2 -fPIC -shared -Wall -Wextra -fno-strict-aliasing -fno-math-errno)
    mapfile -t -O "${#flags[@]}" flags < <(machine_flags)
    local runtime=("${flags[@]}" -O3)
    [[ -z $sanitizer || $sanitizer == undefined ]] || runtime+=("-DXATTN_SANITIZE_${sanitizer^^}")
    local kernels=("${flags[@]}" -fvisibility=hidden -fno-exceptions -fno-rtti -Wno-unknown-pragmas -DXATTN_EMULATED)
    mapfile -t -O "${#kernels[@]}" kernels < <(sanitizer_flags "$sanitizer")
    kernels+=(-include "$PWD/$emulator_sources/emulator.h")

    mkdir -p "$folder"
    # One at a time: commands may run side by side.
    exec 9>"$folder/lock"
    flock 9
    stamp=$({ cat "$emulator_sources"/*.{h,cpp} && printf '%s\n' "${runtime[@]}" "${kernels[@]}"; } | sha256sum | cut -c1-16)
    if [[ $(cat "$folder/stamp" 2>/dev/null || true) != "$stamp" ]]; then
        say "==> build the emulated CUDA libraries (${sanitizer:-plain})" >&2
        rm -f "$folder/stamp"
        "${runtime[@]}" -Wl,-soname,libcuda.so.1 -o "$folder/libcuda.so.1" \
            "$emulator_sources"/{fiber,schedule,collective,product,named_barrier,transaction,tensor_map,shared,stream,graph,memory,device,module}.cpp -ldl -lpthread >&2 ||
            fail "the stand-in for libcuda does not compile"
        "${runtime[@]}" -Wl,-soname,libnvrtc.so.13 -o "$folder/libnvrtc.so.13" "$emulator_sources/nvrtc.cpp" -ldl >&2 ||
            fail "the stand-in for NVRTC does not compile"
        ln -sf libcuda.so.1 "$folder/libcuda.so"
        for library in libnvrtc.so libnvrtc.so.12; do
            ln -sf libnvrtc.so.13 "$folder/$library"
        done
        if [[ -e $emulator_sources/cublaslt.cpp ]]; then
            "${runtime[@]}" -Wl,-soname,libcublasLt.so.13 -o "$folder/libcublasLt.so.13" "$emulator_sources/cublaslt.cpp" \
                "$folder/libcuda.so.1" >&2 || fail "the stand-in for cuBLASLt does not compile"
            for library in libcublasLt.so libcublasLt.so.12; do
                ln -sf libcublasLt.so.13 "$folder/$library"
            done
        fi
        printf '%s\n' "${kernels[@]}" >"$folder/compiler"
        # Images of another emulator are of no use.
        rm -rf "$folder/images"
        printf '%s\n' "$stamp" >"$folder/stamp"
    fi
    flock -u 9
    say "$folder"
}

# Reports name only addresses in images that were loaded after the first report: this looks up the
# lines.
symbolise() {
    local line image lines
    while IFS= read -r line; do
        if [[ $line =~ \(([^\ \(\)]*/)?(xattn-emulated-[A-Za-z0-9]+)\+(0x[0-9a-f]+)\) && ($line == *"<null>"* || $line == SUMMARY*" ("*) ]]; then
            image=$scratch/modules/${BASH_REMATCH[2]}
            lines=$(addr2line -sfiC -e "$image" "${BASH_REMATCH[3]}" 2>/dev/null | paste -d' ' - - | paste -sd';' | sed 's/;/, inlined in /g')
            line="${line%%<null>*} [${lines:-unknown}]"
        fi
        printf '%s\n' "$line"
    done
}

# emulated FOLDER SANITIZER COMMAND...: runs it with the stand-ins of FOLDER. Sanitizers must be in
# the process from its start: preloaded into the command, or, for cargo, into what cargo runs.
emulated() {
    local folder=$1 sanitizer=$2 preload="" options=() command
    shift 2
    mkdir -p "$scratch/modules"
    command=("$@")
    # A toolkit or an environment that is named comes before the loader's search, which finds the
    # stand-ins.
    options=(-u CUDA_PATH -u CUDA_HOME -u VIRTUAL_ENV -u CONDA_PREFIX)
    options+=("LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "XATTN_CUDA_CACHE=$folder/images")
    case $sanitizer in
        address)
            preload=$(g++ -print-file-name=libasan.so)
            # Rust and the harness leave leaks to others; the stacks of fibers are not the
            # program's.
            options+=("ASAN_OPTIONS=detect_leaks=0:handle_segv=1:abort_on_error=0:exitcode=66")
            ;;
        thread)
            preload=$(g++ -print-file-name=libtsan.so)
            options+=("TSAN_OPTIONS=ignore_noninstrumented_modules=1:exitcode=66:report_signal_unsafe=0")
            # Its shadow memory wants addresses where they are without randomisation.
            command=(setarch -R "${command[@]}")
            ;;
        undefined) options+=("UBSAN_OPTIONS=print_stacktrace=1") ;;
    esac
    [[ -z $sanitizer ]] || options+=("XATTN_EMULATOR_MODULES=$scratch/modules")
    if [[ -n $preload ]]; then
        if [[ $1 == cargo ]]; then
            options+=("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=env LD_PRELOAD=$preload")
        else
            options+=("LD_PRELOAD=$preload")
        fi
    fi
    if [[ -z $sanitizer ]]; then
        env "${options[@]}" "${command[@]}"
    else
        { env "${options[@]}" "${command[@]}" 2>&1 >&3 | symbolise >&2; } 3>&1
    fi
}
