// cuDNN's graph API without a device: it checks every descriptor, and computes convolutions in host
// memory from the dimensions and strides of their tensors. Calls are logged to the file $MOCK_LOG.
//
// The heuristics return four engines: 7, which declares reduced-precision reduction; 10, on tensor cores, 3 ms; 11, 2 ms;
// 12, whose plan is not supported. Each needs 1000 bytes of workspace.
//
//   MOCK_CUDNN       fails by name: create, graph (not supported), heuristics-empty, heuristics (internal error),
//                    execute (execution failed)
//   MOCK_LIVE        at exit, logs the number of descriptors that were not destroyed
//   -DVERSION=n      (compiler) another version; -DINCOMPLETE: without cudnnBackendExecute
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef VERSION
#define VERSION 91002
#endif

enum { SUCCESS = 0, BAD_PARAM = 2000, NOT_FINALIZED = 2004, NOT_SUPPORTED = 3000, INTERNAL = 4000, FAILED = 5000 };
enum { CONVOLUTION = 1, ENGINE, CONFIG, HEURISTICS, PLAN, FORWARD = 10, FILTER, DATA, GRAPH = 15, PACK, TENSOR };
enum { HANDLE = 0, DATA_TYPE, INT64 = 3, FLOAT, POINTER = 6, MODE, HEURISTICS_MODE, NOTE = 11, DESCRIPTOR = 15 };

struct attribute { int name, type; long count; char bytes[64]; };
struct descriptor { int kind, finalized, engine; struct attribute attributes[8]; int used; };

static int live, handle_of_cudnn;

static void note(const char *format, long value) {
    void (*mock_note)(const char *, ...) = (void (*)(const char *, ...))dlsym(RTLD_DEFAULT, "mock_note");
    if (!mock_note) mock_note = (void (*)(const char *, ...))dlsym(dlopen("libcuda.so.1", RTLD_NOW), "mock_note");
    mock_note(format, value);
}

static int asked(const char *failure) {
    const char *name = getenv("MOCK_CUDNN");
    return name && !strcmp(name, failure);
}

__attribute__((destructor)) static void at_end(void) {
    if (getenv("MOCK_LIVE")) note("live descriptors: %ld", live);
}

size_t cudnnGetVersion(void) { return VERSION; }

const char *cudnnGetErrorString(int status) {
    switch (status) {
    case BAD_PARAM: return "CUDNN_STATUS_BAD_PARAM";
    case NOT_FINALIZED: return "CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED";
    case NOT_SUPPORTED: return "CUDNN_STATUS_NOT_SUPPORTED";
    case INTERNAL: return "CUDNN_STATUS_INTERNAL_ERROR";
    default: return "CUDNN_STATUS_EXECUTION_FAILED";
    }
}

int cudnnCreate(void **handle) {
    *handle = &handle_of_cudnn;
    return asked("create") ? INTERNAL : SUCCESS;
}

int cudnnDestroy(void *handle) { return SUCCESS; }

int cudnnSetStream(void *handle, void *stream) {
    return handle == &handle_of_cudnn && stream ? SUCCESS : BAD_PARAM;
}

int cudnnBackendCreateDescriptor(int kind, struct descriptor **descriptor) {
    *descriptor = calloc(1, sizeof **descriptor);
    (*descriptor)->kind = kind;
    live++;
    return SUCCESS;
}

int cudnnBackendDestroyDescriptor(struct descriptor *descriptor) {
    live--;
    free(descriptor);
    return SUCCESS;
}

static struct attribute *find(struct descriptor *d, int name) {
    for (int i = 0; i < d->used; i++)
        if (d->attributes[i].name == name) return &d->attributes[i];
    return NULL;
}

static int size_of(int type) { return type == DATA_TYPE || type == FLOAT || type == MODE || type == HEURISTICS_MODE ? 4 : 8; }

int cudnnBackendSetAttribute(struct descriptor *d, int name, int type, int64_t count, const void *values) {
    int bytes = size_of(type) * (int)count;
    if (d->finalized || bytes > 64 || d->used == 8 || count < 1 || find(d, name)) return BAD_PARAM;
    if (type == DESCRIPTOR)
        for (int i = 0; i < count; i++)
            if (!((struct descriptor **)values)[i]->finalized) return NOT_FINALIZED;
    struct attribute *attribute = &d->attributes[d->used++];
    *attribute = (struct attribute){.name = name, .type = type, .count = count};
    memcpy(attribute->bytes, values, bytes);
    return SUCCESS;
}

// True if an attribute exists with this type and, unless it is 0, this number of elements.
static int has(struct descriptor *d, int name, int type, long count) {
    struct attribute *a = find(d, name);
    return a && a->type == type && (!count || a->count == count);
}

static struct descriptor *refers(struct descriptor *d, int name) {
    return *(struct descriptor **)find(d, name)->bytes;
}

static const int64_t *ints(struct descriptor *d, int name) { return (const int64_t *)find(d, name)->bytes; }

// The first attribute of an operation: alpha, then beta, the convolution, w, x, y.
static int first_of(int kind) { return kind == FORWARD ? 700 : kind == DATA ? 706 : 712; }

static int is_complete(struct descriptor *d) {
    switch (d->kind) {
    case TENSOR: {
        if (!has(d, 901, DATA_TYPE, 1) || !has(d, 902, INT64, 0) || !has(d, 906, INT64, 1) || !has(d, 900, INT64, 1)) return 0;
        return has(d, 903, INT64, find(d, 902)->count) && ints(d, 903)[1] == 1;
    }
    case CONVOLUTION: {
        if (!has(d, 100, DATA_TYPE, 1) || !has(d, 101, MODE, 1) || !has(d, 106, INT64, 1)) return 0;
        long axes = ints(d, 106)[0];
        for (int name = 102; name <= 105; name++)
            if (!has(d, name, INT64, axes)) return 0;
        return *(int *)find(d, 101)->bytes == 1 && *(int *)find(d, 100)->bytes == 0;
    }
    case FORWARD: case FILTER: case DATA: {
        int first = first_of(d->kind);
        return has(d, first, FLOAT, 1) && has(d, first + 1, FLOAT, 1) && has(d, first + 2, DESCRIPTOR, 1)
            && has(d, first + 3, DESCRIPTOR, 1) && has(d, first + 4, DESCRIPTOR, 1) && has(d, first + 5, DESCRIPTOR, 1)
            && *(float *)find(d, first)->bytes == 1 && *(float *)find(d, first + 1)->bytes == 0;
    }
    case GRAPH: return has(d, 800, HANDLE, 1) && has(d, 801, DESCRIPTOR, 1);
    case HEURISTICS: return has(d, 201, DESCRIPTOR, 1) && has(d, 200, HEURISTICS_MODE, 1);
    case PLAN: return has(d, 400, HANDLE, 1) && has(d, 401, DESCRIPTOR, 1);
    case PACK: return has(d, 1000, INT64, 3) && has(d, 1001, POINTER, 3) && has(d, 1003, POINTER, 1);
    default: return 0;
    }
}

int cudnnBackendFinalize(struct descriptor *d) {
    if (!is_complete(d)) return BAD_PARAM;
    // A weight gradient in a different format from the input's.
    if (d->kind == FILTER && asked("mixed")
        && *(int *)find(refers(d, 715), 901)->bytes != *(int *)find(refers(d, 716), 901)->bytes) return BAD_PARAM;
    if (d->kind == GRAPH && asked("graph")) return NOT_SUPPORTED;
    if (d->kind == HEURISTICS && asked("heuristics")) return INTERNAL;
    if (d->kind == PLAN && refers(d, 401)->engine == 12) return NOT_SUPPORTED;
    d->finalized = 1;
    return SUCCESS;
}

static const int engines[] = {7, 10, 11, 12};

int cudnnBackendGetAttribute(struct descriptor *d, int name, int type, int64_t room, int64_t *count, void *values) {
    if (d->kind == HEURISTICS && name == 202 && type == DESCRIPTOR) {
        // All are returned in the first mode.
        int known = asked("heuristics-empty") || *(int *)find(d, 200)->bytes != 3 ? 0 : 4;
        if (!room) { *count = known; return SUCCESS; }
        for (*count = 0; *count < known && *count < room; ++*count) {
            struct descriptor *config = ((struct descriptor **)values)[*count];
            if (config->kind != CONFIG) return BAD_PARAM;
            config->engine = engines[*count];
            // A configuration refers to its graph.
            config->attributes[0] = *find(d, 201);
            config->used = config->finalized = 1;
        }
        return SUCCESS;
    }
    *count = 1;
    if (d->kind == CONFIG && name == 300 && type == DESCRIPTOR) {
        if (room) ((struct descriptor **)values)[0]->engine = d->engine;
        return SUCCESS;
    }
    if (d->kind == ENGINE && name == 1301 && type == INT64) { *(int64_t *)values = d->engine; return SUCCESS; }
    if (d->kind == ENGINE && name == 1303 && type == NOTE) {
        *(int *)values = d->engine == 7 ? 2 : 0;
        *count = d->engine == 7 || d->engine == 10;
        return SUCCESS;
    }
    if (d->kind == PLAN && name == 402 && type == INT64) { *(int64_t *)values = 1000; return SUCCESS; }
    return BAD_PARAM;
}

// Reads a tensor as five axes (first, channels, z, y, x), whatever its rank.
struct tensor { int type; int64_t extent[5], stride[5]; char *data; };

static struct tensor tensor_of(struct descriptor *d, struct descriptor *pack) {
    struct tensor t = {.type = *(int *)find(d, 901)->bytes, .extent = {1, 1, 1, 1, 1}};
    int axes = (int)find(d, 902)->count;
    for (int axis = 0; axis < axes; axis++) {
        int to = axis < 2 ? axis : axis + 5 - axes;
        t.extent[to] = ints(d, 902)[axis];
        t.stride[to] = ints(d, 903)[axis];
    }
    for (int i = 0; i < 3; i++)
        if (ints(pack, 1000)[i] == ints(d, 906)[0]) t.data = ((char **)find(pack, 1001)->bytes)[i];
    return t;
}

static long place(const struct tensor *t, long a, long b, long z, long y, long x) {
    return a * t->stride[0] + b * t->stride[1] + z * t->stride[2] + y * t->stride[3] + x * t->stride[4];
}

static float *at(const struct tensor *t, long index) { return (float *)t->data + index; }

#ifndef INCOMPLETE
int cudnnBackendExecute(void *handle, struct descriptor *plan, struct descriptor *pack) {
    if (handle != &handle_of_cudnn || !plan->finalized || !pack->finalized) return BAD_PARAM;
    if (!*(void **)find(pack, 1003)->bytes) return BAD_PARAM;
    int engine = refers(plan, 401)->engine;
    note("cudnnBackendExecute engine=%ld", engine);
    if (asked("execute")) return FAILED;
    void (*mock_time)(float) = (void (*)(float))dlsym(dlopen("libcuda.so.1", RTLD_NOW), "mock_time");
    mock_time(engine == 10 ? 3 : 2);

    struct descriptor *operation = refers(refers(refers(plan, 401), 201), 801);
    int first = first_of(operation->kind), kind = operation->kind;
    struct descriptor *convolution = refers(operation, first + 2);
    // Their order differs from operation to operation.
    int w_at = kind == FILTER ? 715 : first + 3, x_at = kind == FILTER ? 716 : first + 4;
    struct tensor w = tensor_of(refers(operation, w_at), pack), x = tensor_of(refers(operation, x_at), pack);
    struct tensor y = tensor_of(refers(operation, first + 5), pack);
    long stride[3] = {1, 1, 1}, padding[3] = {0, 0, 0}, axes = ints(convolution, 106)[0];
    for (int axis = 0; axis < axes; axis++) {
        stride[3 - axes + axis] = ints(convolution, 103)[axis];
        padding[3 - axes + axis] = ints(convolution, 105)[axis];
    }
    struct tensor *result = kind == FORWARD ? &y : kind == DATA ? &x : &w;
    int64_t *all = result->extent;
    for (long a = 0; a < all[0]; a++) for (long b = 0; b < all[1]; b++)
    for (long z = 0; z < all[2]; z++) for (long i = 0; i < all[3]; i++) for (long j = 0; j < all[4]; j++)
        *at(result, place(result, a, b, z, i, j)) = 0;
    for (long n = 0; n < y.extent[0]; n++) for (long k = 0; k < y.extent[1]; k++)
    for (long oz = 0; oz < y.extent[2]; oz++) for (long oy = 0; oy < y.extent[3]; oy++) for (long ox = 0; ox < y.extent[4]; ox++)
    for (long c = 0; c < x.extent[1]; c++)
    for (long kz = 0; kz < w.extent[2]; kz++) for (long ky = 0; ky < w.extent[3]; ky++) for (long kx = 0; kx < w.extent[4]; kx++) {
        long iz = oz * stride[0] + kz - padding[0], iy = oy * stride[1] + ky - padding[1], ix = ox * stride[2] + kx - padding[2];
        if (iz < 0 || iy < 0 || ix < 0 || iz >= x.extent[2] || iy >= x.extent[3] || ix >= x.extent[4]) continue;
        float *of_x = at(&x, place(&x, n, c, iz, iy, ix)), *of_w = at(&w, place(&w, k, c, kz, ky, kx));
        float *of_y = at(&y, place(&y, n, k, oz, oy, ox));
        if (result == &y) *of_y += *of_x * *of_w;
        else if (result == &x) *of_x += *of_y * *of_w;
        else *of_w += *of_x * *of_y;
    }
    return SUCCESS;
}
#endif
