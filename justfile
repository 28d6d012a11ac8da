# Recipes are scripts, so that CI, which runs the same ones (.ci/run), needs no `just`.

# List the recipes.
default:
    @just --list

# Everything that CI runs, in its order.
ci:
    CI=true bash .ci/run

# Find cargo, install a linker if there is none, fetch dependencies.
setup:
    scripts/setup

# All set-up, then the tests: at most 30 minutes cold.
test:
    scripts/test

# The long forms besides.
test-full:
    scripts/test --full

# The wgpu backend's shaders in a headless browser.
web-test:
    scripts/web-test

# Serve examples/web, with fresh cases, for a browser of yours.
web-serve:
    scripts/web-test --serve

# The C interface: its tests, and the examples in C and C++ under sanitizers.
capi:
    scripts/capi

# AddressSanitizer over the CPU kernels and the C interface, ThreadSanitizer over the tests of threads.
sanitize:
    scripts/sanitize

# The candle example: tests, ops and bridges beside candle's own, a decoder beside PyTorch's numbers.
candle:
    scripts/candle

# The CUDA backend without a GPU: emulator, sanitizers, resources of the kernels.
cuda-test:
    scripts/cuda-test

# What every CUDA kernel needs and contains, against its budget.
cuda-resources:
    scripts/cuda-resources

# Single bugs, planted one at a time: which check sees each.
mutants *arguments:
    scripts/mutants {{ arguments }}

# A command on the emulated CUDA device.
emulated-cuda *command:
    scripts/emulated-cuda {{ command }}

# Everything that wants a CUDA device.
gpu *arguments:
    scripts/gpu {{ arguments }}

# Formatting and clippy.
lint:
    scripts/lint

# Each feature alone.
features:
    scripts/features

# Documentation without warnings.
docs:
    scripts/docs

# Licences, sources, duplicates, and what the library alone pulls in.
dependencies:
    scripts/dependencies

# Crates that each feature brings, compared with the README; `--times` measures builds besides.
features-table *arguments:
    scripts/features-table {{ arguments }}

# What would be published.
package:
    scripts/package

# Timings of named cases, with criterion.
bench *arguments:
    cargo bench --all-features -- {{ arguments }}
