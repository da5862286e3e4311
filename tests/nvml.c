/* NVIDIA's management library, made up. The file that FAKE_NVML names holds: what the process that asks, and another
   one, use of the GPU, how busy it is (percent), its clock and its highest one, why it is not faster, and how much of
   its memory is used (percent). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>
typedef unsigned long long u64;
typedef struct { unsigned pid; u64 time; unsigned sm, memory, encoder, decoder; } Sample;
enum { OWN, OTHERS, BUSY, CLOCK, HIGHEST, REASONS, HELD };
static int said(int place) {
    int numbers[7] = {0};
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    if (!file) return 0;
    fscanf(file, "%d %d %d %d %d %d %d", numbers, numbers + 1, numbers + 2, numbers + 3, numbers + 4, numbers + 5,
           numbers + 6);
    fclose(file);
    return numbers[place];
}
int nvmlInitWithFlags(unsigned flags) { return access(getenv("FAKE_NVML"), R_OK) ? 9 : 0; /* no driver */ }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int error) { return "made up"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = "0"; return index ? 2 : 0; }
int nvmlDeviceGetHandleByUUID(const char *name, void **device) { *device = "0"; return strncmp(name, "GPU-", 4) ? 2 : 0; }
int nvmlDeviceGetName(void *device, char *name, unsigned size) { strncpy(name, "A Made-Up GPU", size); return 0; }
int nvmlDeviceGetUtilizationRates(void *device, unsigned *rates) { rates[0] = said(BUSY); rates[1] = 0; return 0; }
int nvmlDeviceGetMemoryInfo(void *device, u64 *memory) {
    memory[0] = 80ull << 30; /* total, free, used */
    memory[2] = (memory[0] / 100) * said(HELD);
    memory[1] = memory[0] - memory[2];
    return 0;
}
int nvmlDeviceGetClockInfo(void *device, int kind, unsigned *clock) { *clock = said(CLOCK); return kind != 1; }
int nvmlDeviceGetMaxClockInfo(void *device, int kind, unsigned *clock) { *clock = said(HIGHEST); return kind != 1; }
int nvmlDeviceGetCurrentClocksEventReasons(void *device, u64 *reasons) {
    *reasons = said(REASONS);
    return said(HIGHEST) ? 0 : 3; /* not supported */
}
int nvmlDeviceGetProcessUtilization(void *device, Sample *samples, unsigned *count, u64 since) {
    struct timeval now;
    gettimeofday(&now, 0);
    u64 time = now.tv_sec * 1000000ull + now.tv_usec;
    Sample all[] = {{1, time - 60000000, 99}, {1, time, said(OTHERS)}, {getpid(), time, said(OWN)}};
    if (*count < 3) { *count = 3; return 7; }
    memcpy(samples, all, sizeof all);
    return 0;
}
