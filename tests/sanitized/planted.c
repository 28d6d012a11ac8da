/* What AddressSanitizer must report of a program in C, or it reports nothing else either: a tensor that says it has more bytes than its memory. */
#include <stdlib.h>

#include "xattn.h"

int main(void) {
    xattn_device *device = NULL;
    if (xattn_device_open("cpu", &device) != XATTN_STATUS_OK) return 0;
    float *x = calloc(15, sizeof *x), branch[16] = {0}, out[16], gate[1] = {0.5f};
    xattn_tensor t = {.struct_size = sizeof t, .data = x, .bytes = 16 * sizeof *x, .dtype = XATTN_F32, .rank = 3, .shape = {1, 1, 16}};
    xattn_tensor y = t, o = t, g = t;
    y.data = branch;
    o.data = out;
    g.data = gate;
    g.bytes = sizeof gate;
    g.rank = 1;
    xattn_gated_residual_args args = {.struct_size = sizeof args, .x = &t, .y = &y, .gate = &g, .out = &o};
    return xattn_gated_residual(device, &args);
}
