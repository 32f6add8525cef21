// NVML with a GPU that is number 1 in the mocked CUDA driver. NVML numbers GPUs in another order.
//
//   MOCK_NVML=old   reports neither memory nor utilization
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6 };

struct memory { unsigned version; uint64_t total, reserved, free, used; };
struct utilization { unsigned gpu, memory; };

static int is_old(void) {
    const char *mode = getenv("MOCK_NVML");
    return mode && !strcmp(mode, "old");
}

int nvmlInit_v2(void) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int error) { return "mocked"; }

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    if (strcmp(uuid, "GPU-01010101-0101-0101-0101-010101010101")) return NOT_FOUND;
    *device = (void *)0x17;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory *memory) {
    if (device != (void *)0x17 || memory->version != (sizeof *memory | 2 << 24) || is_old()) return NOT_SUPPORTED;
    memory->total = 80, memory->used = 60, memory->free = 20;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *device, struct utilization *rates) {
    if (device != (void *)0x17 || is_old()) return NOT_SUPPORTED;
    rates->gpu = 75;
    return SUCCESS;
}
