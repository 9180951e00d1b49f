/* The driver and its GPUs: identity, readings, processes. */
#include "stub.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1ull << 20)

Return nvmlInitWithFlags(u32 flags) {
    (void)flags;
    ENTER;
    for (u32 i = 0; i < GPUS; i++) gpus[i].index = i;
    for (u32 i = 0; i < GPUS * SLICES; i++) slices[i].index = FIRST_SLICE + i;
    initialised = 1;
    return OK;
}
Return nvmlShutdown(void) { ENTER; initialised = 0; return OK; }
const char *nvmlErrorString(Return code) { (void)code; return "Stubbed Error"; }
Return nvmlSystemGetDriverVersion(char *out, u32 size) { ENTER; return copy(out, size, VERSION); }

/* identity */
static void uuid_of(const Gpu *gpu, char *out, size_t size) {
    const char *kind = gpu->index < FIRST_SLICE ? "GPU" : "MIG";
    if (!gpu_text(gpu, "uuid", out, size)) snprintf(out, size, "%s-00000000-0000-4000-8000-%012u", kind, gpu->index);
}
Return nvmlDeviceGetCount_v2(u32 *count) { ENTER; *count = (u32)state_number("count", 1); return OK; }
Return nvmlDeviceGetHandleByIndex_v2(u32 index, Gpu **gpu) {
    ENTER;
    if (index >= state_number("count", 1) || index >= GPUS) return INVALID;
    *gpu = &gpus[index];
    return is_lost(*gpu) ? LOST : OK;
}
Return nvmlDeviceGetHandleByUUID(const char *uuid, Gpu **gpu) {
    ENTER;
    char own[96];
    for (u32 i = 0; i < state_number("count", 1) && i < GPUS; i++) {
        uuid_of(&gpus[i], own, sizeof own);
        if (!strcmp(own, uuid)) { *gpu = &gpus[i]; return is_lost(*gpu) ? LOST : OK; }
    }
    return NOT_FOUND;
}
Return nvmlDeviceGetUUID(Gpu *gpu, char *out, u32 size) {
    ENTER_GPU;
    char own[96];
    uuid_of(gpu, own, sizeof own);
    return copy(out, size, own);
}
Return nvmlDeviceGetName(Gpu *gpu, char *out, u32 size) {
    ENTER_GPU;
    char name[96] = "NVIDIA Stub RTX";
    gpu_text(gpu, "name", name, sizeof name);
    return copy(out, size, name);
}

#ifndef OLD
/* MIG: slices of a GPU, numbered without regard to which of them are there (gpu0.err.<symbol> makes gaps) */
Return nvmlDeviceGetMigMode(Gpu *gpu, u32 *now, u32 *pending) {
    ENTER_WHOLE;
    char text[64];
    if (!gpu_text(gpu, "mig", text, sizeof text)) return NOT_SUPPORTED;
    *now = *pending = (u32)strtoul(text, 0, 10);
    return OK;
}
Return nvmlDeviceGetMaxMigDeviceCount(Gpu *gpu, u32 *count) { ENTER_WHOLE; *count = 7; return OK; }
Return nvmlDeviceGetMigDeviceHandleByIndex(Gpu *gpu, u32 number, Gpu **slice) {
    ENTER_WHOLE;
    if (number >= SLICES || number >= gpu_number(gpu, "slices", 0)) return NOT_FOUND;
    *slice = &slices[gpu->index * SLICES + number];
    return OK;
}
Return nvmlDeviceGetGpuInstanceId(Gpu *gpu, u32 *instance) {
    ENTER_GPU;
    if (whole(gpu) == gpu) return INVALID;
    *instance = (u32)((gpu - slices) % SLICES) + 1;
    return OK;
}
#endif

/* readings that are one number: the call, its type, its key and default */
#define NUMBER(call, type, key, otherwise) \
    Return call(Gpu *gpu, type *out) { ENTER_WHOLE; *out = (type)gpu_number(gpu, key, otherwise); return OK; }
NUMBER(nvmlDeviceGetPowerUsage, u32, "power_mw", 60000)
NUMBER(nvmlDeviceGetTotalEnergyConsumption, u64, "energy_mj", 0)
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, u64, "reasons", 1)
NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, u32, "retired_pending", 0)

Return nvmlDeviceGetCudaComputeCapability(Gpu *gpu, int *major, int *minor) {
    ENTER_WHOLE;
    char text[64] = "8.9";
    gpu_text(gpu, "capability", text, sizeof text);
    return sscanf(text, "%d.%d", major, minor) == 2 ? OK : NOT_SUPPORTED;
}
Return nvmlDeviceGetUtilizationRates(Gpu *gpu, u32 *out) {
    ENTER_WHOLE;
    out[0] = (u32)gpu_number(gpu, "utilization", 0);
    out[1] = 0;
    return OK;
}
Return nvmlDeviceGetTemperature(Gpu *gpu, u32 sensor, u32 *out) {
    ENTER_WHOLE;
    if (sensor) return INVALID;
    *out = (u32)gpu_number(gpu, "temperature", 40);
    return OK;
}
Return nvmlDeviceGetTemperatureThreshold(Gpu *gpu, u32 kind, u32 *out) {
    ENTER_WHOLE;
    u64 slowdown = gpu_number(gpu, "slowdown", 95); /* 0: a GPU that publishes none */
    if (kind != 1 || !slowdown) return NOT_SUPPORTED;
    *out = (u32)slowdown;
    return OK;
}
Return nvmlDeviceGetMarginTemperature(Gpu *gpu, u32 *out) {
    ENTER_WHOLE;
    if (out[0] != 0x1000008) return VERSION_WRONG;
    out[1] = (u32)gpu_number(gpu, "margin", 50);
    return OK;
}

/* memory: `used` of the first call includes what the driver reserves, that of the second does not */
typedef struct { u64 total, reserved, used; } Memory;
static Memory memory_of(const Gpu *gpu) {
    Memory m = {gpu_number(gpu, "total_mb", 24576), gpu_number(gpu, "reserved_mb", 256), gpu_number(gpu, "used_mb", 0)};
    return m;
}
Return nvmlDeviceGetMemoryInfo(Gpu *gpu, u64 *out) {
    ENTER_GPU;
    Memory m = memory_of(gpu);
    out[0] = m.total * MIB;
    out[1] = (m.total - m.reserved - m.used) * MIB;
    out[2] = (m.reserved + m.used) * MIB;
    return OK;
}

/* memory that errs: only GPUs with ECC (gpuN.ecc 1) have these */
Return nvmlDeviceGetTotalEccErrors(Gpu *gpu, u32 uncorrected, u32 aggregate, u64 *out) {
    ENTER_WHOLE;
    (void)aggregate;
    if (!gpu_number(gpu, "ecc", 0)) return NOT_SUPPORTED;
    *out = gpu_number(gpu, uncorrected ? "ecc_uncorrected" : "ecc_corrected", 0);
    return OK;
}
Return nvmlDeviceGetRemappedRows(Gpu *gpu, u32 *correctable, u32 *uncorrectable, u32 *pending, u32 *failed) {
    ENTER_WHOLE;
    if (!gpu_number(gpu, "ecc", 0)) return NOT_SUPPORTED;
    *correctable = (u32)gpu_number(gpu, "rows_correctable", 0);
    *uncorrectable = (u32)gpu_number(gpu, "rows_uncorrectable", 0);
    *pending = (u32)gpu_number(gpu, "rows_pending", 0);
    *failed = (u32)gpu_number(gpu, "rows_failed", 0);
    return OK;
}

/* processes: called once with room for none, then with room for more than there were */
typedef struct { u32 pid; u64 bytes; u32 instance, compute_instance; } Process;
static Return processes(const Gpu *gpu, const char *key, u32 *count, Process *out) {
    char text[2048] = "", *rest, *one;
    u32 room = *count, found = 0;
    gpu_text(gpu, key, text, sizeof text);
    for (one = strtok_r(text, ",", &rest); one; one = strtok_r(0, ",", &rest), found++) {
        if (!out || found >= room) continue;
        char *bytes = strchr(one, ':') + 1;
        Process p = {(u32)strtoul(one, 0, 10), *bytes == '?' ? ~0ull : strtoull(bytes, 0, 10), ~0u, ~0u};
        out[found] = p;
    }
    *count = found;
    return found > room ? TOO_SMALL : OK;
}

#ifdef OLD
Return nvmlDeviceGetComputeRunningProcesses_v2(Gpu *gpu, u32 *count, Process *out) {
    ENTER_GPU;
    return processes(gpu, "compute", count, out);
}
#else
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, u64, "reasons", 1)

typedef struct { u32 version; u64 total, reserved, free, used; } MemoryV2;
Return nvmlDeviceGetMemoryInfo_v2(Gpu *gpu, MemoryV2 *out) {
    ENTER_GPU;
    if (out->version != 0x02000028) return VERSION_WRONG;
    Memory m = memory_of(gpu);
    out->total = m.total * MIB;
    out->reserved = m.reserved * MIB;
    out->used = m.used * MIB;
    out->free = (m.total - m.reserved - m.used) * MIB;
    return OK;
}
Return nvmlDeviceGetTemperatureV(Gpu *gpu, u32 *out) {
    ENTER_WHOLE;
    if (out[0] != 0x100000C) return VERSION_WRONG;
    out[2] = (u32)gpu_number(gpu, "temperature", 40);
    return OK;
}
Return nvmlDeviceGetComputeRunningProcesses_v3(Gpu *gpu, u32 *count, Process *out) {
    ENTER_GPU;
    return processes(gpu, "compute", count, out);
}
Return nvmlDeviceGetGraphicsRunningProcesses_v3(Gpu *gpu, u32 *count, Process *out) {
    ENTER_GPU;
    return processes(gpu, "graphics", count, out);
}

/* field values: gpuN.field230 is the recovery action */
typedef struct { u32 id, scope; int64_t at, latency; u32 type; Return result; u64 value; } Field;
Return nvmlDeviceGetFieldValues(Gpu *gpu, int count, Field *fields) {
    ENTER_WHOLE;
    for (int i = 0; i < count; i++) {
        char key[32], text[64];
        snprintf(key, sizeof key, "field%u", fields[i].id);
        int known = gpu_text(gpu, key, text, sizeof text);
        fields[i].type = 1;
        fields[i].value = known ? strtoull(text, 0, 0) : 0;
        fields[i].result = known ? OK : NOT_SUPPORTED;
    }
    return OK;
}
#endif
