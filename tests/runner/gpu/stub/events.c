/* XID events: each set hears every line appended to <state>.events after the set was made, once. */
#include "stub.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define SETS 256
#define XID_CRITICAL 8ull
typedef struct { int used; u64 listens; long offset; } Set;
typedef struct { Gpu *gpu; u64 type, data; u32 instance, compute_instance; } Event;
static Set sets[SETS];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static FILE *events(void) {
    char path[512];
    const char *state = getenv("NVIDIA_STUB_STATE");
    snprintf(path, sizeof path, "%s.events", state ? state : "nvml.state");
    return fopen(path, "re");
}

static long end_of_events(void) {
    FILE *file = events();
    if (!file) return 0;
    fseek(file, 0, SEEK_END);
    long end = ftell(file);
    fclose(file);
    return end;
}

Return nvmlEventSetCreate(Set **set) {
    ENTER;
    Return result = 23; /* insufficient resources: someone leaks sets */
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < SETS && result; i++)
        if (!sets[i].used) {
            sets[i] = (Set){1, 0, end_of_events()};
            *set = &sets[i];
            result = OK;
        }
    pthread_mutex_unlock(&mutex);
    return result;
}
Return nvmlEventSetFree(Set *set) { ENTER; set->used = 0; return OK; }
Return nvmlDeviceRegisterEvents(Gpu *gpu, u64 types, Set *set) {
    ENTER_WHOLE;
    if (!gpu_number(gpu, "reports", 1) || types != XID_CRITICAL) return NOT_SUPPORTED;
    set->listens |= 1ull << gpu->index;
    return OK;
}

/* The next line for this set: 1 and the event, or 0. A line without its newline is still being written. */
static int next(Set *set, Event *event) {
    FILE *file = events();
    if (!file) return 0;
    int found = 0, xid, instance;
    u32 gpu;
    char newline;
    fseek(file, set->offset, SEEK_SET);
    while (!found && fscanf(file, "%u %d %d%c", &gpu, &xid, &instance, &newline) == 4 && newline == '\n') {
        set->offset = ftell(file);
        if (gpu >= GPUS || !(set->listens >> gpu & 1)) continue;
        *event = (Event){&gpus[gpu], XID_CRITICAL, (u64)xid, (u32)instance, ~0u};
        found = 1;
    }
    fclose(file);
    return found;
}

static int hears_lost(const Set *set) {
    for (u32 i = 0; i < GPUS; i++)
        if (set->listens >> i & 1 && is_lost(&gpus[i])) return 1;
    return 0;
}

static long now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* What was reported before the GPU was lost still comes; after that a lost GPU answers every wait at once. */
Return nvmlEventSetWait_v2(Set *set, Event *event, u32 ms) {
    long until = now_ms() + ms;
    for (;;) {
        ENTER;
        if (next(set, event)) return OK;
        if (hears_lost(set)) return LOST;
        if (now_ms() >= until) return TIMEOUT;
        usleep(2000);
    }
}
