# Sourced by scripts/emulated-cuda --test: the emulator's own tests. An emulator that does not find
# planted bugs is blind. shellcheck shell=bash

# What must be caught by what: class, build, and in how many of the launches of each mode (early,
# late, random): all, some or none. `report` is the sanitizer's, which ends the process. The rest of
# a line is what the message must hold; without, a wrong result is what shows.
planted_bugs() {
    cat <<'END'
none                             plain     none   none   none
none                             address   none   none   none
none                             undefined none   none   none
none                             thread    none   none   none
missing_barrier_before_read      plain     some   some   some
missing_barrier_before_read      thread    report report report data race
missing_barrier_before_overwrite plain     some   none   some
missing_barrier_before_overwrite thread    report none   report data race
missing_wait                     plain     none   all    some
shared_bounds                    plain     all    all    all    copy_async_16: its target lies in no tile
store_shared_bounds              plain     all    all    all    something was written outside of tile stages
store_shared_bounds              address   report report report heap-buffer-overflow planted/product.cu
global_write_bounds              plain     all    all    all    something was written behind the allocation of 768 bytes
global_write_bounds              address   report report report heap-buffer-overflow planted/product.cu
global_read_bounds               address   report report report heap-buffer-overflow planted/product.cu
divergent_barrier                plain     all    all    all    divergent barrier: thread
barrier_count                    plain     all    all    all    divergent barrier: thread
uninitialised                    plain     all    all    all
missing_lane                     plain     all    all    all    deadlock: nobody can go on. thread (0, 0, 0), lane 0, which waits in shfl_xor at kernels/lib/reduce.cuh
wrong_mask                       plain     all    all    all    its mask 7fffffff does not name it
missing_syncwarp                 plain     some   some   some
missing_syncwarp                 thread    report report report data race planted/product.cu
block_race                       thread    report report report data race planted/product.cu
overlapping_tiles                plain     all    all    all    tile sums: bytes 15344 to 15600 overlap tile stages, bytes 0 to 15360
misaligned                       plain     all    all    all    is no multiple of 16
signed_overflow                  undefined report report report runtime error: signed integer overflow
END
}

# The same for pipeline.cu: tensor copies, barriers that count, products of a warpgroup.
planted_in_pipeline() {
    cat <<'END'
none                       plain none none none
missing_barrier_init_fence plain all  all  all  tensor_copy: no barrier_init_fence since its barrier was made
missing_empty_wait         plain all  all  all
wrong_empty_parity         plain all  all  all  deadlock: nobody can go on
wrong_bytes                plain all  all  all  deadlock: nobody can go on
wrong_target               plain all  all  all  tensor_copy: its target does not lie on a multiple of 1024 bytes
not_all_warps              plain all  all  all  which waits in a named barrier at planted/pipeline.cu
missing_proxy_fence        plain all  all  all  which made no async_proxy_fence since
missing_named_barrier      plain some none some
wrong_full_parity          plain all  all  all
missing_full_wait          plain all  all  all
missing_product_fence      plain all  all  all  wgmma: no wgmma_fence since its registers may have been touched
warp_left_out              plain all  all  all  warp 3 issued 107 products, its warpgroup 108
touched_in_flight          plain all  all  all  was written while its product was on its way
released_early             plain none some some
missing_product_wait       plain all  all  all
END
}

# check_planted PROGRAM CLASS BUILD MODE EXPECTED MESSAGE FOLDER: one line of the table in one mode.
check_planted() {
    local program=$1 class=$2 build=$3 mode=$4 expected=$5 message=$6 folder=$7 sanitizer="" launches=24 status=0 fits=yes output caught
    # Sanitizers are slow, and sure.
    [[ $build == plain ]] || { sanitizer=$build && launches=8; }
    output=$(XATTN_EMULATOR_ASYNC=$mode emulated "$folder" "$sanitizer" "$program" "$class" "$launches" 2>"$scratch/errors") || status=$?
    caught=$(sed -n "s/^$class \([0-9]*\)\/$launches .*/\1/p" <<<"$output")
    case $expected in
        report) [[ $status == 66 || ($build == undefined && $status == 1) ]] ;;
        none) [[ $status == 0 && $caught == 0 ]] ;;
        some) [[ $status == 0 && $caught -gt 0 ]] ;;
        all) [[ $status == 0 && $caught == "$launches" ]] ;;
    esac || fits=""
    [[ $expected == none ]] || grep -qF -- "$message" "$scratch/errors" || [[ -z $message ]] || fits=""
    [[ -n $fits ]] || {
        cat "$scratch/errors" >&2
        fail "planted bug $class ($build, $mode): expected $expected of $launches launches and '$message'," \
            "got '$output', exit status $status; XATTN_EMULATOR_SEED=$XATTN_EMULATOR_SEED"
    }
    [[ $expected == report ]] && caught=reported || caught="$caught of $launches"
    printf '    %-33s %-9s %-6s %s\n' "$class" "$build" "$mode" "$caught"
}

# Bank conflicts of ldmatrix and of copies are counted: rows of 80 bytes have none for ldmatrix;
# eight pieces of two such rows meet once.
check_statistics() {
    local program=$1 folder=$2 line
    XATTN_EMULATOR_STATISTICS=$scratch/statistics emulated "$folder" "" "$program" none 1 >/dev/null
    line=$(cat "$scratch/statistics")
    [[ $line == "product launches=1 blocks=3 ldmatrix=1152 ldmatrix_conflicts=0 copy_async=576 copy_async_conflicts=576 wide=0 wide_conflicts=0" ]] ||
        fail "statistics of product.cu: $line"
}

# One seed gives one schedule, and others give others: which launches a bug that needs luck is
# caught in.
check_seeds() {
    local program=$1 folder=$2 seed found=() again
    for seed in 1 2 3 4; do
        found+=("$(XATTN_EMULATOR_SEED=$seed XATTN_EMULATOR_ASYNC=random emulated "$folder" "" "$program" block_race 24)")
    done
    again=$(XATTN_EMULATOR_SEED=4 XATTN_EMULATOR_ASYNC=random emulated "$folder" "" "$program" block_race 24)
    [[ $again == "${found[3]}" ]] || fail "seed 4 gave '${found[3]}', then '$again'"
    [[ $(printf '%s\n' "${found[@]}" | sort -u | wc -l) -gt 1 ]] || fail "seeds 1 to 4 all gave '$again'"
}

# run_emulator_tests [FILTER]: everything, or the planted bugs whose line in the table holds FILTER.
run_emulator_tests() {
    local filter=${1:-} folder class build early late random message program source
    folder=$(build_emulator "")
    for source in wrappers/wrappers driver/driver planted/planted planted/pipeline; do
        g++ -std=gnu++17 -O1 -Wall -Wextra -o "$scratch/${source#*/}" "$emulator_sources/$source.cpp" "$folder/libcuda.so.1" \
            "$folder/libnvrtc.so.13" -lpthread || fail "$source.cpp does not compile"
    done
    if [[ -z $filter || $filter == basics ]]; then
        step "wrappers, lane by lane" emulated "$folder" "" "$scratch/wrappers"
        step "the driver's promises" emulated "$folder" "" "$scratch/driver"
        for build in address thread; do
            folder=$(build_emulator "$build")
            step "the driver's promises, $build sanitizer" emulated "$folder" "$build" "$scratch/driver"
        done
        folder=$(build_emulator "")
        step "a seed gives a schedule" check_seeds "$scratch/planted" "$folder"
        step "bank conflicts are counted" check_statistics "$scratch/planted" "$folder"
    fi
    say "==> planted bugs: class, build, asynchronous copies, launches caught"
    while read -r program class build early late random message; do
        [[ "$program $class $build" == *"$filter"* ]] || continue
        folder=$(build_emulator "$([[ $build == plain ]] || say "$build")")
        check_planted "$scratch/$program" "$class" "$build" early "$early" "$message" "$folder"
        check_planted "$scratch/$program" "$class" "$build" late "$late" "$message" "$folder"
        check_planted "$scratch/$program" "$class" "$build" random "$random" "$message" "$folder"
    done < <(planted_bugs | sed 's/^/planted /' && planted_in_pipeline | sed 's/^/pipeline /')
}
