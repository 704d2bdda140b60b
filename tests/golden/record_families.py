"""Golden logits of `family_models.py` by llama.cpp itself, in float32 arithmetic.

    python tests/golden/record_families.py --peer-python PYTHON [NAME ...]

PYTHON has llama-cpp-python. Those of other models stay as they are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from family_model import KEPT, TOKENS
from family_models import MODELS

GOLDEN = Path(__file__).with_name("families.npz")

_WORKER = """
import ctypes, json, sys
import llama_cpp as llama
import numpy as np
silent = llama.llama_log_callback(lambda level, text, data: None)
llama.llama_log_set(silent, ctypes.c_void_p(0))
llama.llama_backend_init()
parameters = llama.llama_model_default_params()
parameters.use_mmap = False
model = llama.llama_model_load_from_file(sys.argv[1].encode(), parameters)
tokens = json.loads(sys.argv[2])
n = len(tokens)
options = llama.llama_context_default_params()
options.n_ctx, options.n_batch, options.n_ubatch, options.n_threads = 64, n, n, 1
options.type_k = options.type_v = 0
options.flash_attn_type = 0
context = llama.llama_init_from_model(model, options)
batch = llama.llama_batch_init(n, 0, 1)
batch.n_tokens = n
for i, token in enumerate(tokens):
    batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
assert llama.llama_decode(context, batch) == 0
n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
rows = [np.ctypeslib.as_array(llama.llama_get_logits_ith(context, i), (n_vocab,)) for i in json.loads(sys.argv[3])]
np.save(sys.argv[4], np.stack(rows))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*MODELS, []], help="all by default")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has llama-cpp-python")
    args = parser.parse_args()
    golden = dict(np.load(GOLDEN)) if GOLDEN.exists() else {}
    golden = {name: logits for name, logits in golden.items() if name in MODELS}
    for name in args.names or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            model, out = Path(folder) / "model.gguf", Path(folder) / "logits.npy"
            MODELS[name].write(model)
            arguments = [str(model), json.dumps(TOKENS), json.dumps(KEPT), str(out)]
            subprocess.run([args.peer_python, "-c", _WORKER, *arguments], check=True, capture_output=True)
            golden[name] = np.load(out)
        print(name, golden[name].shape, f"{np.ptp(golden[name]):.3g}")
    np.savez_compressed(GOLDEN, **golden)


if __name__ == "__main__":
    main()
