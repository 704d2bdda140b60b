/* The least that llama.cpp needs from process start to its first greedy token, which it prints.
 *
 *     llama_first_token MODEL PROMPT THREADS CONTEXT
 *
 * No warm-up run, no log, no exit handlers: whatever is not needed for the token is left out.
 */
#include <llama.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void silent(enum ggml_log_level level, const char *text, void *data) {
    (void)level, (void)text, (void)data;
}

static void fail(const char *what) {
    fprintf(stderr, "error: %s\n", what);
    exit(1);
}

int main(int argc, char **argv) {
    if (argc != 5) fail("usage: llama_first_token MODEL PROMPT THREADS CONTEXT");
    llama_log_set(silent, NULL);
    llama_backend_init();
    struct llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) fail("cannot load the model");
    struct llama_context_params params = llama_context_default_params();
    params.n_threads = params.n_threads_batch = atoi(argv[3]);
    params.n_ctx = (uint32_t)atoi(argv[4]);
    params.no_perf = true;
    struct llama_context *context = llama_init_from_model(model, params);
    if (!context) fail("cannot make a context");

    const struct llama_vocab *vocab = llama_model_get_vocab(model);
    llama_token tokens[512];
    int32_t n = llama_tokenize(vocab, argv[2], (int32_t)strlen(argv[2]), tokens, 512, true, true);
    if (n <= 0) fail("cannot tokenize the prompt");
    if (llama_decode(context, llama_batch_get_one(tokens, n))) fail("llama_decode failed");
    const float *logits = llama_get_logits_ith(context, -1);
    llama_token best = 0;
    for (llama_token i = 1; i < llama_vocab_n_tokens(vocab); i++)
        if (logits[i] > logits[best]) best = i;
    char piece[256];
    n = llama_token_to_piece(vocab, best, piece, sizeof piece, 0, true);
    if (n < 0 || write(STDOUT_FILENO, piece, (size_t)n) != n) fail("cannot print the token");
    _exit(0);
}
