// A CUDA driver without a device: device memory is host memory, and all work is done when it is queued, except on a stream
// that is set to hang. Calls are logged to the file $MOCK_LOG, except those that poll.
//
//   MOCK_GPUS        number of devices; default 1
//   MOCK_UNHEALTHY   cuEventQuery reports an illegal address
//   MOCK_NO_MEMORY   cuMemAlloc is out of memory
//   -DOLD_DRIVER     (compiler) a driver before CUDA 12.5
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, NO_DEVICE = 100, NOT_READY = 600, ILLEGAL_ADDRESS = 700 };

struct event { int number; volatile int *hangs; };

static int hanging;            // state of the only stream, set by the mock of NCCL
static int events;

void mock_note(const char *format, ...) {
    char line[256];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    line[length] = '\n';
    int file = open(getenv("MOCK_LOG"), O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (file < 0 || write(file, line, length + 1) < 0) abort();
    close(file);
}

static float last_milliseconds; // duration of the last work, set by the mock of cuDNN

void mock_time(float milliseconds) { last_milliseconds = milliseconds; }

void mock_hang(int hangs) { hanging = hangs; }

static int devices(void) {
    const char *number = getenv("MOCK_GPUS");
    return number ? atoi(number) : 1;
}

int cuInit(unsigned flags) { return devices() ? SUCCESS : NO_DEVICE; }
int cuDeviceGetCount(int *count) { *count = devices(); return SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return SUCCESS; }

int cuGetErrorName(int error, const char **name) {
    *name = error == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : error == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : NULL;
    return SUCCESS;
}

int cuDeviceGetUuid_v2(char *uuid, int device) {
    for (int i = 0; i < 16; i++) uuid[i] = device;
    return SUCCESS;
}

int cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, length, "Mock GPU %d", device);
    return SUCCESS;
}

int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = 60, *total = 80; return SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 9 : 0; return SUCCESS; }

int cuMemAlloc_v2(void **pointer, size_t bytes) {
    mock_note("cuMemAlloc %zu", bytes);
    if (getenv("MOCK_NO_MEMORY")) return OUT_OF_MEMORY;
    *pointer = malloc(bytes);
    return SUCCESS;
}

int cuMemFree_v2(void *pointer) { free(pointer); return SUCCESS; }

int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(intptr_t)(device + 1); return SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int device) { return SUCCESS; }
int cuCtxSetCurrent(void *context) { return SUCCESS; }

int cuCtxSynchronize(void) {
    mock_note("cuCtxSynchronize");
    while (*(volatile int *)&hanging) usleep(1000);
    return SUCCESS;
}

int cuStreamCreate(void **stream, unsigned flags) {
    mock_note("cuStreamCreate flags=%u", flags);
    *stream = &hanging;
    return SUCCESS;
}

int cuStreamDestroy_v2(void *stream) { return SUCCESS; }

int cuEventCreate(struct event **event, unsigned flags) {
    *event = calloc(1, sizeof **event);
    (*event)->number = ++events;
    return SUCCESS;
}

int cuEventDestroy_v2(struct event *event) { free(event); return SUCCESS; }

int cuEventRecord(struct event *event, void *stream) {
    mock_note("cuEventRecord");
    event->hangs = &hanging;
    return SUCCESS;
}

int cuEventQuery(struct event *event) {
    if (getenv("MOCK_UNHEALTHY")) return ILLEGAL_ADDRESS;
    return event->hangs && *event->hangs ? NOT_READY : SUCCESS;
}

int cuStreamSynchronize(void *stream) { mock_note("cuStreamSynchronize"); return SUCCESS; }
int cuEventSynchronize(struct event *event) { return SUCCESS; }

int cuEventElapsedTime(float *milliseconds, struct event *begin, struct event *end) {
    *milliseconds = last_milliseconds;
    return SUCCESS;
}

int cuStreamWaitEvent(void *stream, struct event *event, unsigned flags) {
    mock_note("cuStreamWaitEvent");
    return SUCCESS;
}

#ifndef OLD_DRIVER
int cuCtxRecordEvent(void *context, struct event *event) {
    mock_note("cuCtxRecordEvent");
    return SUCCESS;
}

int cuCtxWaitEvent(void *context, struct event *event) {
    mock_note(event->hangs ? "cuCtxWaitEvent" : "cuCtxWaitEvent on nothing");
    return SUCCESS;
}
#endif
