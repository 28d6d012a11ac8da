// Device memory: each allocation a block of its own on the heap. Addresses are the host's.
#pragma once

#include <cstddef>
#include <string>

namespace emulator {

// Bytes between guards (plain build) or between AddressSanitizer's redzones; filled with 0xff,
// which is NaN in every float type.
void* allocate_global(size_t bytes);
// False where `at` is no allocation.
bool free_global(void* at);
// Does some allocation hold all of these bytes?
bool holds(const void* at, size_t bytes);
// False, with the story, when a guard around an allocation was written over.
bool allocations_intact(std::string& what);

bool is_pinned(const void* at);

} // namespace emulator
