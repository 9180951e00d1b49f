/* The driver and its cards: identity, readings, processes. */
#include "stub.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1ull << 20)

Return nvmlInitWithFlags(u32 flags) {
    (void)flags;
    ENTER;
    for (u32 i = 0; i < CARDS; i++) cards[i].index = i;
    for (u32 i = 0; i < CARDS * SLICES; i++) slices[i].index = FIRST_SLICE + i;
    initialised = 1;
    return OK;
}
Return nvmlShutdown(void) { ENTER; initialised = 0; return OK; }
const char *nvmlErrorString(Return code) { (void)code; return "Stubbed Error"; }
Return nvmlSystemGetDriverVersion(char *out, u32 size) { ENTER; return copy(out, size, VERSION); }

/* identity */
static void uuid_of(const Card *card, char *out, size_t size) {
    const char *kind = card->index < FIRST_SLICE ? "GPU" : "MIG";
    if (!card_text(card, "uuid", out, size)) snprintf(out, size, "%s-00000000-0000-4000-8000-%012u", kind, card->index);
}
Return nvmlDeviceGetCount_v2(u32 *count) { ENTER; *count = (u32)state_number("count", 1); return OK; }
Return nvmlDeviceGetHandleByIndex_v2(u32 index, Card **card) {
    ENTER;
    if (index >= state_number("count", 1) || index >= CARDS) return INVALID;
    *card = &cards[index];
    return is_lost(*card) ? LOST : OK;
}
Return nvmlDeviceGetHandleByUUID(const char *uuid, Card **card) {
    ENTER;
    char own[96];
    for (u32 i = 0; i < state_number("count", 1) && i < CARDS; i++) {
        uuid_of(&cards[i], own, sizeof own);
        if (!strcmp(own, uuid)) { *card = &cards[i]; return is_lost(*card) ? LOST : OK; }
    }
    return NOT_FOUND;
}
Return nvmlDeviceGetUUID(Card *card, char *out, u32 size) {
    ENTER_CARD;
    char own[96];
    uuid_of(card, own, sizeof own);
    return copy(out, size, own);
}
Return nvmlDeviceGetName(Card *card, char *out, u32 size) {
    ENTER_CARD;
    char name[96] = "NVIDIA Stub RTX";
    card_text(card, "name", name, sizeof name);
    return copy(out, size, name);
}

#ifndef OLD
/* MIG: slices of a card, numbered without regard to which of them are there (gpu0.err.<symbol> makes gaps) */
Return nvmlDeviceGetMigMode(Card *card, u32 *now, u32 *pending) {
    ENTER_WHOLE;
    char text[64];
    if (!card_text(card, "mig", text, sizeof text)) return NOT_SUPPORTED;
    *now = *pending = (u32)strtoul(text, 0, 10);
    return OK;
}
Return nvmlDeviceGetMaxMigDeviceCount(Card *card, u32 *count) { ENTER_WHOLE; *count = 7; return OK; }
Return nvmlDeviceGetMigDeviceHandleByIndex(Card *card, u32 number, Card **slice) {
    ENTER_WHOLE;
    if (number >= SLICES || number >= card_number(card, "slices", 0)) return NOT_FOUND;
    *slice = &slices[card->index * SLICES + number];
    return OK;
}
Return nvmlDeviceGetGpuInstanceId(Card *card, u32 *instance) {
    ENTER_CARD;
    if (whole(card) == card) return INVALID;
    *instance = (u32)((card - slices) % SLICES) + 1;
    return OK;
}
#endif

/* readings that are one number: the call, its type, its key and default */
#define NUMBER(call, type, key, otherwise) \
    Return call(Card *card, type *out) { ENTER_WHOLE; *out = (type)card_number(card, key, otherwise); return OK; }
NUMBER(nvmlDeviceGetPowerUsage, u32, "power_mw", 60000)
NUMBER(nvmlDeviceGetTotalEnergyConsumption, u64, "energy_mj", 0)
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, u64, "reasons", 1)
NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, u32, "retired_pending", 0)

Return nvmlDeviceGetCudaComputeCapability(Card *card, int *major, int *minor) {
    ENTER_WHOLE;
    char text[64] = "8.9";
    card_text(card, "capability", text, sizeof text);
    return sscanf(text, "%d.%d", major, minor) == 2 ? OK : NOT_SUPPORTED;
}
Return nvmlDeviceGetUtilizationRates(Card *card, u32 *out) {
    ENTER_WHOLE;
    out[0] = (u32)card_number(card, "utilization", 0);
    out[1] = 0;
    return OK;
}
Return nvmlDeviceGetTemperature(Card *card, u32 sensor, u32 *out) {
    ENTER_WHOLE;
    if (sensor) return INVALID;
    *out = (u32)card_number(card, "temperature", 40);
    return OK;
}
Return nvmlDeviceGetTemperatureThreshold(Card *card, u32 kind, u32 *out) {
    ENTER_WHOLE;
    u64 slowdown = card_number(card, "slowdown", 95); /* 0: a card that publishes none */
    if (kind != 1 || !slowdown) return NOT_SUPPORTED;
    *out = (u32)slowdown;
    return OK;
}
Return nvmlDeviceGetMarginTemperature(Card *card, u32 *out) {
    ENTER_WHOLE;
    if (out[0] != 0x1000008) return VERSION_WRONG;
    out[1] = (u32)card_number(card, "margin", 50);
    return OK;
}

/* memory: `used` of the first call includes what the driver reserves, that of the second does not */
typedef struct { u64 total, reserved, used; } Memory;
static Memory memory_of(const Card *card) {
    Memory m = {card_number(card, "total_mb", 24576), card_number(card, "reserved_mb", 256), card_number(card, "used_mb", 0)};
    return m;
}
Return nvmlDeviceGetMemoryInfo(Card *card, u64 *out) {
    ENTER_CARD;
    Memory m = memory_of(card);
    out[0] = m.total * MIB;
    out[1] = (m.total - m.reserved - m.used) * MIB;
    out[2] = (m.reserved + m.used) * MIB;
    return OK;
}

/* memory that errs: only cards with ECC (gpuN.ecc 1) have these */
Return nvmlDeviceGetTotalEccErrors(Card *card, u32 uncorrected, u32 aggregate, u64 *out) {
    ENTER_WHOLE;
    (void)aggregate;
    if (!card_number(card, "ecc", 0)) return NOT_SUPPORTED;
    *out = card_number(card, uncorrected ? "ecc_uncorrected" : "ecc_corrected", 0);
    return OK;
}
Return nvmlDeviceGetRemappedRows(Card *card, u32 *correctable, u32 *uncorrectable, u32 *pending, u32 *failed) {
    ENTER_WHOLE;
    if (!card_number(card, "ecc", 0)) return NOT_SUPPORTED;
    *correctable = (u32)card_number(card, "rows_correctable", 0);
    *uncorrectable = (u32)card_number(card, "rows_uncorrectable", 0);
    *pending = (u32)card_number(card, "rows_pending", 0);
    *failed = (u32)card_number(card, "rows_failed", 0);
    return OK;
}

/* processes: called once with room for none, then with room for more than there were */
typedef struct { u32 pid; u64 bytes; u32 instance, compute_instance; } Process;
static Return processes(const Card *card, const char *key, u32 *count, Process *out) {
    char text[2048] = "", *rest, *one;
    u32 room = *count, found = 0;
    card_text(card, key, text, sizeof text);
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
Return nvmlDeviceGetComputeRunningProcesses_v2(Card *card, u32 *count, Process *out) {
    ENTER_CARD;
    return processes(card, "compute", count, out);
}
#else
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, u64, "reasons", 1)

typedef struct { u32 version; u64 total, reserved, free, used; } MemoryV2;
Return nvmlDeviceGetMemoryInfo_v2(Card *card, MemoryV2 *out) {
    ENTER_CARD;
    if (out->version != 0x02000028) return VERSION_WRONG;
    Memory m = memory_of(card);
    out->total = m.total * MIB;
    out->reserved = m.reserved * MIB;
    out->used = m.used * MIB;
    out->free = (m.total - m.reserved - m.used) * MIB;
    return OK;
}
Return nvmlDeviceGetTemperatureV(Card *card, u32 *out) {
    ENTER_WHOLE;
    if (out[0] != 0x100000C) return VERSION_WRONG;
    out[2] = (u32)card_number(card, "temperature", 40);
    return OK;
}
Return nvmlDeviceGetComputeRunningProcesses_v3(Card *card, u32 *count, Process *out) {
    ENTER_CARD;
    return processes(card, "compute", count, out);
}
Return nvmlDeviceGetGraphicsRunningProcesses_v3(Card *card, u32 *count, Process *out) {
    ENTER_CARD;
    return processes(card, "graphics", count, out);
}

/* field values: gpuN.field230 is the recovery action */
typedef struct { u32 id, scope; int64_t at, latency; u32 type; Return result; u64 value; } Field;
Return nvmlDeviceGetFieldValues(Card *card, int count, Field *fields) {
    ENTER_WHOLE;
    for (int i = 0; i < count; i++) {
        char key[32], text[64];
        snprintf(key, sizeof key, "field%u", fields[i].id);
        int known = card_text(card, key, text, sizeof text);
        fields[i].type = 1;
        fields[i].value = known ? strtoull(text, 0, 0) : 0;
        fields[i].result = known ? OK : NOT_SUPPORTED;
    }
    return OK;
}
#endif
