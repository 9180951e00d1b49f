/* A libnvidia-ml.so.1 for tests: GPUs, driver and faults are what a text file says.
 *
 * $NVIDIA_STUB_STATE names the file: one "key value" a line, the last of a key wins, read anew on every call. Replace it
 * by rename, so that no call sees half of it. Keys:
 *   driver 595.10          the kernel module's version; differs from this library's own: every call answers 18
 *   unloaded 1             the kernel module is not there: init answers 9
 *   count 2                GPUs
 *   hang 1                 every call blocks until this is 0; hang.nvmlEventSetWait_v2 1: only that one
 *   err.<symbol> 999       that call answers this
 *   gpu0.err.<symbol> 3    for that GPU only
 *   gpu0.lost 1            off the bus; sticky: stays lost for this process even if the key goes
 *   gpu0.<value> N         see gpus.c for the names and defaults
 *   gpu0.mig 1             MIG mode; gpu0.slices 2: slices, whose values are those of gpu100, gpu101 (gpu116 for gpu1, ...)
 *   gpu0.compute 12:1048576,13:?   pid:bytes; "?" is "not available"; gpu0.graphics likewise
 * <state>.events: appended lines "gpu xid instance" (-1: it names no slice). A set hears what is appended after it was made, each line once.
 *
 * -DVERSION="\"600.20\"" builds the library of another driver, -DOLD one without the calls that came after driver 470.
 */
#ifndef STUB_H
#define STUB_H
#include <stddef.h>
#include <stdint.h>

typedef int Return;
typedef unsigned int u32;
typedef unsigned long long u64;
enum {
    OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7,
    DRIVER_NOT_LOADED = 9, TIMEOUT = 10, LOST = 15, MISMATCH = 18, VERSION_WRONG = 25
};
#define GPUS 16
#define SLICES 16     /* of one GPU */
#define FIRST_SLICE 100
#ifndef VERSION
#define VERSION "595.10"
#endif

typedef struct { u32 index; int lost; } Gpu;
extern Gpu gpus[GPUS];
extern Gpu slices[GPUS * SLICES];
Gpu *whole(Gpu *gpu);                                        /* the GPU of a slice, or the GPU itself */
extern int initialised;

int state_text(const char *key, char *out, size_t size);        /* 0: no such key */
u64 state_number(const char *key, u64 otherwise);
int gpu_text(const Gpu *gpu, const char *key, char *out, size_t size);
u64 gpu_number(const Gpu *gpu, const char *key, u64 otherwise);

/* What every call does first: hang, then fail as the state says. */
Return enter(const char *symbol);
Return enter_gpu(Gpu *gpu, const char *symbol);
int is_lost(Gpu *gpu);
Return copy(char *out, u32 size, const char *text);

#define ENTER do { Return r_ = enter(__func__); if (r_) return r_; } while (0)
#define ENTER_WHOLE do { ENTER_GPU; if (whole(gpu) != gpu) return INVALID; } while (0) /* not told of a slice */
#define ENTER_GPU do { Return r_ = enter_gpu(gpu, __func__); if (r_) return r_; } while (0)
#endif
