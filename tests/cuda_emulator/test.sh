# Sourced by scripts/emulated-cuda --test: the emulator's own tests. An emulator that does not find planted bugs is blind.
# shellcheck shell=bash

# What must be caught by what: class, build, and in how many of the launches of each mode (early, late, random): all, some, none, or - where
# chance decides. `report` is one of the sanitizer, which ends the process with 66; UBSan's ends it with 1.
planted_bugs() {
    cat <<'END'
none                             plain     none  none  none
none                             address   none  none  none
none                             undefined none  none  none
none                             thread    none  none  none
missing_barrier_before_read      plain     some  some  some
missing_barrier_before_read      thread    report report report
missing_barrier_before_overwrite plain     some  none  some
missing_barrier_before_overwrite thread    report none  report
missing_wait                     plain     none  all   some
shared_bounds                    plain     all   all   all
plain_shared_bounds              plain     all   all   all
plain_shared_bounds              address   report report report
global_write_bounds              plain     all   all   all
global_write_bounds              address   report report report
global_read_bounds               address   report report report
divergent_barrier                plain     all   all   all
barrier_count                    plain     all   all   all
uninitialised                    plain     all   all   all
missing_lane                     plain     all   all   all
wrong_mask                       plain     all   all   all
missing_syncwarp                 plain     some  some  some
missing_syncwarp                 thread    report report report
block_race                       thread    report report report
signed_overflow                  undefined report report report
END
}

# check_planted PROGRAM CLASS BUILD MODE EXPECTED FOLDER: one line of the table in one mode.
check_planted() {
    local program=$1 class=$2 build=$3 mode=$4 expected=$5 folder=$6 launches=24 status=0 output caught sanitizer=$3
    [[ $build != plain ]] || sanitizer=""
    # Sanitizers are slow, and sure.
    [[ $build == plain ]] || launches=8
    output=$(XATTN_EMULATOR_ASYNC=$mode emulated "$folder" "$sanitizer" "$program" "$class" "$launches" 2>"$scratch/errors") || status=$?
    caught=$(sed -n "s/^$class \([0-9]*\)\/$launches\$/\1/p" <<<"$output")
    case $expected in
        report) [[ $status == 66 || ($build == undefined && $status == 1) ]] && grep -q "planted/product.cu:[0-9]" "$scratch/errors" && caught=reported ;;
        none) [[ $status == 0 && $caught == 0 ]] ;;
        some) [[ $status == 0 && $caught -gt 0 ]] ;;
        all) [[ $status == 0 && $caught == "$launches" ]] ;;
    esac || {
        cat "$scratch/errors" >&2
        fail "planted bug $class ($build, $mode): expected $expected of $launches launches, got '$output', exit status $status; XATTN_EMULATOR_SEED=$XATTN_EMULATOR_SEED"
    }
    printf '    %-33s %-9s %-6s %s\n' "$class" "$build" "$mode" "${caught}${caught:+$([[ $expected == report ]] || printf ' of %s' "$launches")}"
}

# Bank conflicts of ldmatrix and of copies are counted: rows of 80 bytes have none for ldmatrix; eight pieces of two such rows meet once.
check_statistics() {
    local program=$1 folder=$2 line
    XATTN_EMULATOR_STATISTICS=$scratch/statistics emulated "$folder" "" "$program" none 1 >/dev/null
    line=$(cat "$scratch/statistics")
    [[ $line == "product launches=1 blocks=3 ldmatrix=1152 ldmatrix_conflicts=0 copy_async=576 copy_async_conflicts=576 wide=0 wide_conflicts=0" ]] ||
        fail "statistics of product.cu: $line"
}

# run_emulator_tests [FILTER]: everything, or the planted bugs whose line in the table holds FILTER.
run_emulator_tests() {
    local filter=${1:-} folder class build modes mode index program
    folder=$(build_emulator "")
    for program in wrappers planted; do
        g++ -std=gnu++17 -O1 -Wall -Wextra -o "$scratch/$program" "$emulator_sources/$program/$program.cpp" "$folder/libcuda.so.1" \
            "$folder/libnvrtc.so.13" || fail "$program.cpp does not compile"
    done
    if [[ -z $filter ]]; then
        step "wrappers, lane by lane" emulated "$folder" "" "$scratch/wrappers"
        step "bank conflicts are counted" check_statistics "$scratch/planted" "$folder"
    fi
    say "==> planted bugs: class, build, asynchronous copies, launches caught"
    while read -r class build modes; do
        [[ "$class $build" == *"$filter"* ]] || continue
        folder=$(build_emulator "$([[ $build == plain ]] || say "$build")")
        index=0
        for mode in early late random; do
            read -r -a expected <<<"$modes"
            check_planted "$scratch/planted" "$class" "$build" "$mode" "${expected[index]}" "$folder"
            index=$((index + 1))
        done
    done < <(planted_bugs)
}
