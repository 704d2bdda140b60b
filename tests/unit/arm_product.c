/* Products of one panel on another machine: arm_product RAW ROWS PANEL_NBYTES SCRATCH_NBYTES N_TOKENS OUT
 *
 * Writes float32 [2][n_tokens][16]: by the kernel `one`, token by token, and by `tiled`, all at once. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef int32_t kernel(void *, void *, void *, void *, void *, void *, void *, void *, int32_t, int32_t, int32_t, int32_t);
extern kernel pack, one, tiled;

static char *read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    fseek(file, 0, SEEK_END);
    long nbytes = ftell(file);
    rewind(file);
    char *data = malloc((size_t)nbytes);
    if (fread(data, 1, (size_t)nbytes, file) != (size_t)nbytes) exit(1);
    return data;
}

int main(int argc, char **argv) {
    if (argc != 7) return 1;
    char *raw = read_file(argv[1]), *rows = read_file(argv[2]);
    char *panel = aligned_alloc(64, (size_t)atol(argv[3])), *scratch = aligned_alloc(64, (size_t)atol(argv[4]));
    int32_t n = atoi(argv[5]);
    float *out = malloc(2 * 16 * sizeof(float) * (size_t)n);
    pack(raw, panel, 0, 0, 0, 0, 0, 0, 16, 0, 1, 0);
    one(panel, rows, out, 0, 0, 0, 0, scratch, n, 0, 1, 0);
    tiled(panel, rows, out + 16 * n, 0, 0, 0, 0, scratch, n, 0, 1, 0);
    FILE *file = fopen(argv[6], "wb");
    fwrite(out, sizeof(float), 2 * 16 * (size_t)n, file);
    return fclose(file);
}
