/* A stand-in for libnvidia-ml.so.1, for the real nvidia-ml-py: two GPUs, of which the second is
   computed on by processes 4242 and 4243. What it does not have is not asked for. */
#include <stdio.h>
#include <string.h>

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process_t;

enum { SUCCESS = 0, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7 };

static int number(void *gpu) { return (int)((char *)gpu - (char *)0) - 1; }

int nvmlInitWithFlags(unsigned flags) { return flags ? NOT_SUPPORTED : SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return code == NOT_SUPPORTED ? "Not Supported" : "Unknown"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **gpu)
{
    *gpu = (char *)0 + index + 1;
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *gpu, char *text, unsigned length)
{
    snprintf(text, length, "GPU-%d", number(gpu));
    return SUCCESS;
}

int nvmlDeviceGetName(void *gpu, char *text, unsigned length)
{
    snprintf(text, length, "Compiled GPU %d", number(gpu));
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *gpu, memory_t *memory)
{
    memory->total = 16ULL << 30;
    memory->free = number(gpu) ? 4ULL << 30 : 15ULL << 30;
    memory->used = memory->total - memory->free;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *gpu, unsigned *count, process_t *processes)
{
    unsigned present = number(gpu) ? 2 : 0, room = *count;
    *count = present;
    if (room < present)
        return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < present; i++)
        processes[i] = (process_t){.pid = 4242 + i, .used = 1ULL << 30};
    return SUCCESS;
}

int nvmlDeviceGetMigMode(void *gpu, unsigned *current, unsigned *pending)
{
    *current = *pending = 0;
    return number(gpu) ? SUCCESS : NOT_SUPPORTED;
}
