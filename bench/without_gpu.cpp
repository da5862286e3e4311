// Preloaded by without_gpu.py, under the name libcuda.so.1: the answers that torch's C++ needs of a device and a driver
// where there are none.
#include <cuda_runtime_api.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>

static cudaDeviceProp card() {
    cudaDeviceProp p;
    memset(&p, 0, sizeof p);
    const char* name = getenv("CARD");
    const char* numbers = getenv("CARD_NUMBERS");
    snprintf(p.name, sizeof p.name, "%s", name ? name : "");
    sscanf(numbers ? numbers : "", "%d %d %d %zu %zu %d", &p.major, &p.minor, &p.multiProcessorCount, &p.totalGlobalMem,
           &p.sharedMemPerBlockOptin, &p.maxThreadsPerMultiProcessor);
    p.warpSize = 32;
    p.maxThreadsPerBlock = 1024;
    p.regsPerBlock = p.regsPerMultiprocessor = 65536;
    p.sharedMemPerBlock = 49152;
    p.sharedMemPerMultiprocessor = p.sharedMemPerBlockOptin + 1024;
    p.l2CacheSize = 62914560;
    return p;
}

static cudaDeviceProp device = card();
static signed char devices = 0;  // many once torch has its guard that does nothing: autograd asks for more than one

extern "C" void device_is_there() { devices = 127; }
extern "C" signed char _ZN3c104cuda12device_countEv() { return devices; }
extern "C" signed char _ZN3c104cuda28device_count_ensure_non_zeroEv() { return 1; }
extern "C" bool _ZN3c104cuda17hasPrimaryContextEa(signed char) { return false; }
extern "C" cudaDeviceProp* _ZN2at4cuda26getCurrentDevicePropertiesEv() { return &device; }
extern "C" cudaDeviceProp* _ZN2at4cuda19getDevicePropertiesEa(signed char) { return &device; }
extern "C" cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) { *p = device; return cudaSuccess; }

extern "C" int cuInit(unsigned) { return 100; }  // no device
extern "C" int cuDriverGetVersion(int* version) { *version = 13020; return 0; }
extern "C" int cuGetErrorString(int, const char** text) { *text = "no device"; return 0; }
extern "C" int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) { *flags = *active = 0; return 0; }
