/* An engine in C: phi attention on memory of its own, first in one call, then prepared and enqueued as in steady state.
 *
 *   cargo build --release -p xattn-capi
 *   cc -std=c11 -Icapi/include examples/c/attention.c target/release/libxattn_c.a -lm -lpthread -ldl -o attention && ./attention
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "xattn.h"

enum { ROWS = 5, HEADS = 2, DIM = 8, MEDIA = 2, KEYS_PER_MEDIA = 2, KEYS = MEDIA * KEYS_PER_MEDIA };

static void expect(int32_t status, const char *what) {
    if (status != XATTN_STATUS_OK) {
        fprintf(stderr, "%s: %s: %s\n", what, xattn_status_name(status), xattn_last_error());
        exit(1);
    }
}

/* A tensor without gaps over memory of ours. */
static xattn_tensor tensor(void *data, uint64_t bytes, int32_t dtype, uint32_t rank, const uint64_t *shape) {
    xattn_tensor t = {.struct_size = sizeof t, .data = data, .bytes = bytes, .dtype = dtype, .rank = rank};
    memcpy(t.shape, shape, rank * sizeof *shape);
    return t;
}

#define SHAPE(...) (uint64_t[]){__VA_ARGS__}

int main(int argc, char **argv) {
    xattn_device *device = NULL;
    expect(xattn_device_open(argc > 1 ? argv[1] : "cpu", &device), "open");
    char name[256];
    expect(xattn_device_describe(device, name, sizeof name), "describe");
    printf("%s\n", name);

    /* Five tokens, images at the second and the fourth: each token attends to the last image at or before it. */
    uint32_t locations[ROWS] = {0, 1, 0, 1, 0};
    int32_t media_index[ROWS];
    xattn_tensor loc = tensor(locations, sizeof locations, XATTN_U32, 2, SHAPE(1, ROWS));
    xattn_tensor phi = tensor(media_index, sizeof media_index, XATTN_I32, 2, SHAPE(1, ROWS));
    xattn_media_index_args index = {.struct_size = sizeof index, .locations = &loc, .media_index = &phi};
    expect(xattn_media_index(device, &index), "media_index");

    /* All keys alike; the values of image m are m: the result of a row is the number of its image. */
    float q_data[ROWS][HEADS][DIM], k_data[KEYS][HEADS][DIM], v_data[KEYS][HEADS][DIM], out_data[ROWS][HEADS][DIM];
    for (int i = 0; i < ROWS * HEADS * DIM; i++) (&q_data[0][0][0])[i] = 0.5f;
    for (int i = 0; i < KEYS * HEADS * DIM; i++) {
        (&k_data[0][0][0])[i] = 0.25f;
        (&v_data[0][0][0])[i] = (float)(1 + i / (KEYS_PER_MEDIA * HEADS * DIM));
    }
    xattn_tensor q = tensor(q_data, sizeof q_data, XATTN_F32, 4, SHAPE(1, ROWS, HEADS, DIM));
    xattn_tensor k = tensor(k_data, sizeof k_data, XATTN_F32, 4, SHAPE(1, KEYS, HEADS, DIM));
    xattn_tensor v = tensor(v_data, sizeof v_data, XATTN_F32, 4, SHAPE(1, KEYS, HEADS, DIM));
    xattn_tensor out = tensor(out_data, sizeof out_data, XATTN_F32, 4, SHAPE(1, ROWS, HEADS, DIM));
    xattn_segment media = {.struct_size = sizeof media, .k = &k, .v = &v};
    xattn_attention_args args = {
        .struct_size = sizeof args,
        .scale = 1.0f / sqrtf(DIM),
        .q = &q,
        .first = &media,
        .visibility = XATTN_VISIBILITY_SAME_MEDIA,
        .media_index = &phi,
        .keys_per_media = KEYS_PER_MEDIA,
        .out = &out,
    };
    expect(xattn_attention(device, &args), "attention");
    for (int i = 0; i < ROWS; i++) {
        printf("token %d: image %d, result %g\n", i, media_index[i], out_data[i][0][0]);
        if (out_data[i][0][0] != (float)media_index[i]) return 1;
    }

    /* Steady state: plan once, then enqueue with a workspace of ours. Nothing is allocated in the loop. */
    xattn_prepared *prepared = NULL;
    expect(xattn_attention_prepare(device, &args, &prepared), "prepare");
    uint64_t bytes = 0;
    expect(xattn_prepared_workspace_bytes(prepared, &bytes), "workspace");
    void *workspace = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    for (int step = 0; step < 3; step++) {
        memset(out_data, 0xff, sizeof out_data);
        expect(xattn_attention_enqueue(prepared, &args, workspace, bytes, NULL), "enqueue");
        if (out_data[4][1][7] != 2.0f) return 1;
    }
    free(workspace);

    /* What is wrong is said, and nothing crashes: a rank that does not fit, then a handle that was freed. */
    q.rank = 3;
    int32_t status = xattn_attention(device, &args);
    printf("%s: %s\n", xattn_status_name(status), xattn_last_error());
    if (status != XATTN_STATUS_INVALID_ARGUMENT || !strstr(xattn_last_error(), "attention: q: expected shape")) return 1;
    expect(xattn_prepared_free(prepared), "free");
    status = xattn_prepared_free(prepared);
    printf("%s: %s\n", xattn_status_name(status), xattn_last_error());
    if (status != XATTN_STATUS_INVALID_HANDLE) return 1;
    expect(xattn_device_free(device), "free");
    return xattn_live_handles() == 0 ? 0 : 1;
}
