/* The state file, and the faults that any call may meet. */
#include "stub.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

Card cards[CARDS];
Card slices[CARDS * SLICES];
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

int card_text(const Card *card, const char *key, char *out, size_t size) {
    char full[160];
    snprintf(full, sizeof full, "gpu%u.%s", card->index, key);
    return state_text(full, out, size);
}

u64 card_number(const Card *card, const char *key, u64 otherwise) {
    char text[64];
    return card_text(card, key, text, sizeof text) ? strtoull(text, 0, 0) : otherwise;
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

Card *whole(Card *card) {
    return card >= slices && card < slices + CARDS * SLICES ? &cards[(card - slices) / SLICES] : card;
}

int is_lost(Card *card) {
    card = whole(card);
    if (card_number(card, "lost", 0)) card->lost = 1;
    return card->lost;
}

Return enter_card(Card *card, const char *symbol) {
    Return result = enter(symbol);
    if (result) return result;
    Card *own = whole(card);
    if (own < cards || own >= cards + CARDS || own->index >= state_number("count", 1)) return INVALID;
    if (is_lost(card)) return LOST;
    char key[160];
    snprintf(key, sizeof key, "err.%s", symbol);
    return (Return)card_number(card, key, OK);
}

Return copy(char *out, u32 size, const char *text) {
    if (strlen(text) + 1 > size) return TOO_SMALL;
    strcpy(out, text);
    return OK;
}
