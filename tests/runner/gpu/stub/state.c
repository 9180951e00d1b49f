/* The state file, and the faults that any call may meet. */
#include "stub.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

Gpu gpus[GPUS];
Gpu slices[GPUS * SLICES];
int initialised;

int state_text(const char *key, char *out, size_t size) {
    const char *path = getenv("NVIDIA_STUB_STATE");
    FILE *file = fopen(path ? path : "nvml.state", "re");
    if (!file) return 0;
    char line[4096];
    size_t length = strlen(key);
    int found = 0;
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, key, length) && line[length] == ' ') {
            line[strcspn(line, "\r\n")] = 0;
            snprintf(out, size, "%s", line + length + 1);
            found = 1;
        }
    fclose(file);
    return found;
}

u64 state_number(const char *key, u64 otherwise) {
    char text[64];
    return state_text(key, text, sizeof text) ? strtoull(text, 0, 0) : otherwise;
}

int gpu_text(const Gpu *gpu, const char *key, char *out, size_t size) {
    char full[160];
    snprintf(full, sizeof full, "gpu%u.%s", gpu->index, key);
    return state_text(full, out, size);
}

u64 gpu_number(const Gpu *gpu, const char *key, u64 otherwise) {
    char text[64];
    return gpu_text(gpu, key, text, sizeof text) ? strtoull(text, 0, 0) : otherwise;
}

Return enter(const char *symbol) {
    char key[160], driver[64] = VERSION;
    snprintf(key, sizeof key, "hang.%s", symbol);
    while (state_number("hang", 0) || state_number(key, 0)) usleep(2000);
    if (state_number("unloaded", 0)) return DRIVER_NOT_LOADED;
    state_text("driver", driver, sizeof driver);
    if (strcmp(driver, VERSION)) return MISMATCH;
    snprintf(key, sizeof key, "err.%s", symbol);
    Return told = (Return)state_number(key, OK);
    if (told) return told;
    return initialised || !strncmp(symbol, "nvmlInit", 8) ? OK : UNINITIALIZED;
}

Gpu *whole(Gpu *gpu) {
    return gpu >= slices && gpu < slices + GPUS * SLICES ? &gpus[(gpu - slices) / SLICES] : gpu;
}

int is_lost(Gpu *gpu) {
    gpu = whole(gpu);
    if (gpu_number(gpu, "lost", 0)) gpu->lost = 1;
    return gpu->lost;
}

Return enter_gpu(Gpu *gpu, const char *symbol) {
    Return result = enter(symbol);
    if (result) return result;
    Gpu *own = whole(gpu);
    if (own < gpus || own >= gpus + GPUS || own->index >= state_number("count", 1)) return INVALID;
    if (is_lost(gpu)) return LOST;
    char key[160];
    snprintf(key, sizeof key, "err.%s", symbol);
    return (Return)gpu_number(gpu, key, OK);
}

Return copy(char *out, u32 size, const char *text) {
    if (strlen(text) + 1 > size) return TOO_SMALL;
    strcpy(out, text);
    return OK;
}
