// empty: does nothing. What a launch costs by itself, timed beside what is worth launching.
//
// Work, shared memory, traffic: none.

struct EmptyParams {
    u32 unused;
};

struct EmptyOperands {
    Operand unused;
};

KERNEL(EmptyParams, EmptyOperands) {}
