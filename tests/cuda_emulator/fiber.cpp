// Fibers: one stack per CUDA thread, and a switch between them of some twenty instructions.
// AddressSanitizer and ThreadSanitizer are told of every switch.

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "runtime.h"

#if defined(XATTN_SANITIZE_ADDRESS)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack_save, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack_save, const void** old_bottom, size_t* old_size);
void __asan_unpoison_memory_region(const volatile void* at, size_t size);
}
#endif

#if defined(XATTN_SANITIZE_THREAD)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* object);
void __tsan_release(void* object);
}
#endif

// emulator_switch(save, load): callee-saved registers onto the stack, its pointer to *save; then
// the other stack's. emulator_resume is where a stack that was left goes on.
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
.globl emulator_resume
.hidden emulator_resume
emulator_resume:
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, .-emulator_switch
)");

extern "C" void emulator_switch(void** save, void* load);

namespace emulator {

namespace {

constexpr size_t PAGE = 4096, STACK = 256 * 1024, STACKS = 2048;

// Stacks are kept for the life of the process: a lowest page that faults, then the stack.
void* stack_of(uint32_t number) {
    static void* stacks[STACKS];
    void*& stack = stacks[number];
    if (stack == nullptr) {
        void* mapped = mmap(nullptr, PAGE + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mapped == MAP_FAILED || mprotect(mapped, PAGE, PROT_NONE) != 0) {
            fprintf(stderr, "emulator: no memory for the stack of thread %u\n", number);
            abort();
        }
        stack = static_cast<char*>(mapped) + PAGE;
    }
    return stack;
}

Fiber* left;

} // namespace

void prepare(Fiber& fiber, uint32_t number, void (*entry)()) {
    fiber.stack_bottom = stack_of(number);
    fiber.stack_bytes = STACK;
#if defined(XATTN_SANITIZE_ADDRESS)
    // Frames of a fiber that was given up left their redzones behind.
    __asan_unpoison_memory_region(fiber.stack_bottom, STACK);
    fiber.sanitizer = nullptr;
#elif defined(XATTN_SANITIZE_THREAD)
    // Kept from block to block.
    if (fiber.sanitizer == nullptr) {
        fiber.sanitizer = __tsan_create_fiber(0);
    }
#endif
    // Not all stacks at the same place of the caches' sets.
    const size_t colour = number % 32 * 320;
    void** top = reinterpret_cast<void**>(static_cast<char*>(fiber.stack_bottom) + STACK - colour - 64);
    // At entry the stack is as after a call: 8 beside a multiple of 16.
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; saved++) {
        *--top = nullptr;
    }
    fiber.stack_pointer = top;
}

void change_to(Fiber& from, Fiber& to) {
    left = &from;
#if defined(XATTN_SANITIZE_ADDRESS)
    __sanitizer_start_switch_fiber(&from.sanitizer, to.stack_bottom, to.stack_bytes);
#elif defined(XATTN_SANITIZE_THREAD)
    if (from.sanitizer == nullptr) {
        from.sanitizer = __tsan_get_current_fiber();
    }
    // 1: the switch itself orders nothing.
    __tsan_switch_to_fiber(to.sanitizer, 1);
#endif
    emulator_switch(&from.stack_pointer, to.stack_pointer);
#if defined(XATTN_SANITIZE_ADDRESS)
    __sanitizer_finish_switch_fiber(from.sanitizer, nullptr, nullptr);
#endif
}

// The first thing that a new fiber does. The scheduler's stack is learnt here.
void fiber_entered() {
#if defined(XATTN_SANITIZE_ADDRESS)
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (left->stack_bottom == nullptr) {
        left->stack_bottom = const_cast<void*>(bottom);
        left->stack_bytes = size;
    }
#endif
}

// After a fault: ThreadSanitizer believes the fiber to be deep inside of the kernel.
void discard(Fiber& fiber) {
#if defined(XATTN_SANITIZE_THREAD)
    __tsan_destroy_fiber(fiber.sanitizer);
#endif
    fiber.sanitizer = nullptr;
}

void synchronise_release([[maybe_unused]] void* object) {
#if defined(XATTN_SANITIZE_THREAD)
    __tsan_release(object);
#endif
}

void synchronise_acquire([[maybe_unused]] void* object) {
#if defined(XATTN_SANITIZE_THREAD)
    __tsan_acquire(object);
#endif
}

} // namespace emulator
