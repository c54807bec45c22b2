"""
What train.py does on a GPU, on a machine without one: everything is compiled for the real GPU, and nothing is run.

    python3 -m venv /tmp/cuda && /tmp/cuda/bin/pip install torch==2.11.0 && /tmp/cuda/bin/pip install -e .
    /tmp/cuda/bin/python prepare_data.py --scale h100 --source stdlib
    /tmp/cuda/bin/python benchmarks/stand_in_gpu.py                                   # an H100 with 80 GB
    /tmp/cuda/bin/python benchmarks/stand_in_gpu.py --capability 8.9 --memory 24      # a consumer card

It needs Linux, gcc and a CUDA build of torch (some gigabytes, for a virtual environment of its own). With gcc it makes
a stand-in for the CUDA driver, for the runtime and for cuBLAS: memory is the host's, counted and limited; kernels do
nothing. So torch chooses its kernels, Inductor and Triton compile them, and the allocator hands out memory as on that
GPU, but for cuDNN's workspaces. What is computed is worthless; GPU time is not seen, but measured by train_bench.py.
This shows that train.py runs there, what the host spends before the clock starts, with an empty compile cache and with
a full one, the peak of memory, and how many bytes each graph moves at most. Results: train_bench.txt.
"""

import argparse
import collections
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# -----------------------------------------------------------------------------
# Stand-in

# What the libraries' functions have to do; all others do nothing and report success.
RUNTIME = r"""
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static size_t used, next_handle = 1000;
static size_t number(const char *name) { return strtoull(getenv(name), 0, 10); }
static size_t limit(void) { return number("STAND_IN_GB") << 30; }

struct block { void *start; size_t size; struct block *next; } *blocks;

cudaError_t cudaMalloc(void **start, size_t size) {
    if (used + size > limit()) return cudaErrorMemoryAllocation;
    *start = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    struct block *block = malloc(sizeof *block);
    *block = (struct block){*start, size, blocks};
    blocks = block, used += size;
    return cudaSuccess;
}
cudaError_t cudaFree(void *start) {
    for (struct block **link = &blocks; *link; link = &(*link)->next) {
        struct block *block = *link;
        if (block->start != start) continue;
        munmap(start, block->size);
        used -= block->size, *link = block->next;
        free(block);
        break;
    }
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **start, size_t size, unsigned flags) { *start = calloc(1, size); return cudaSuccess; }
cudaError_t cudaFreeHost(void *start) { free(start); return cudaSuccess; }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    if (kind != cudaMemcpyDeviceToDevice) memcpy(to, from, size);
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *pointer) {
    memset(found, 0, sizeof *found);
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
    *total = limit(), *left = limit() - used;
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    *stream = (cudaStream_t)next_handle++;
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    *event = (cudaEvent_t)next_handle++;
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) { *ms = 1; return cudaSuccess; }
const char *cudaGetErrorString(cudaError_t error) { return error ? "out of memory" : "no error"; }
const char *cudaGetErrorName(cudaError_t error) { return cudaGetErrorString(error); }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
    memset(found, 0, sizeof *found);
    found->maxThreadsPerBlock = 1024, found->binaryVersion = number("STAND_IN_CAPABILITY");
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "stand-in");
    p->major = number("STAND_IN_CAPABILITY") / 10, p->minor = number("STAND_IN_CAPABILITY") % 10;
    p->totalGlobalMem = limit(), p->l2CacheSize = 50 << 20;
    p->multiProcessorCount = 132, p->warpSize = 32; /* this and all that follows: an H100's */
    p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->sharedMemPerBlock = 49152, p->sharedMemPerBlockOptin = 232448, p->sharedMemPerMultiprocessor = 233472;
    return cudaSuccess;
}
int cublasCreate_v2(void **handle) { *handle = (void *)next_handle++; return 0; }
int cublasLtCreate(void **handle) { *handle = (void *)next_handle++; return 0; }
int cublasGetPointerMode_v2(void *handle, int *mode) { *mode = 0; return 0; }
int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return 0; }
"""

DRIVER = r"""
#include <stdlib.h>
#include <string.h>

int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int capability = atoi(getenv("STAND_IN_CAPABILITY"));
    switch (attribute) {
    case 75: *value = capability / 10; break;
    case 76: *value = capability % 10; break;
    case 97: *value = 232448; break; /* shared memory that a block may opt in to */
    default: *value = 1;
    }
    return 0;
}
int cuModuleLoadData(void **module, const void *data) { *module = (void *)1; return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = (void *)1; return 0; }
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute ? 0 : 1024; return 0; }
int cuPointerGetAttribute(void *value, int attribute, unsigned long pointer) {
    if (attribute == 3) *(unsigned long *)value = pointer; /* the device's address of it */
    else *(int *)value = 0;
    return 0;
}
"""

# The wheel's headers include one that is not in it, of macros that say where code runs.
HOST_DEFINES = r"""
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define CUDART_CB
#define __host__
#define __device__
#define __device_builtin__
#define __cudart_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __align__(n) __attribute__((aligned(n)))
"""


def undefined_symbols():
    """The functions of the runtime and of cuBLAS that torch's libraries call."""
    found = set()
    for library in (Path(torch.__file__).parent / "lib").glob("*.so"):
        listing = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True).stdout
        found |= set(re.findall(r"\b((?:cuda[A-Z]|cublas)\w+)", listing))
    return found


def build(source, names, output, include):
    """Compile `source` and an empty function for every other one of `names` to a shared library."""
    defined = set(re.findall(r"\b(cu\w+)\(", source))
    empty = "".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(names - defined))
    objects = []
    for text, path in ((source, output.with_suffix(".1.c")), (empty, output.with_suffix(".2.c"))):
        path.write_text(text)
        objects.append(path)
    command = ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", f"-I{include}", f"-I{output.parent}"]
    subprocess.run([*command, "-o", output, *objects], check=True)


def build_stand_in(folder):
    """The environment in which processes see the stand-in, which is built in `folder`."""
    (include,) = Path(torch.__file__).parents[1].glob("nvidia/*/include/cuda.h")
    (folder / "crt").mkdir()
    (folder / "crt/host_defines.h").write_text(HOST_DEFINES)
    build(RUNTIME, undefined_symbols(), folder / "runtime.so", include.parent)
    # cuda.h declares what it renames under its new name too
    names = set(re.findall(r"\b(cu[A-Z]\w+)\s*\(", include.read_text()))
    names |= set(re.findall(r"#define\s+cu\w+\s+(?:__CUDA_API_P\w+\()?(cu\w+)", include.read_text()))
    build(DRIVER, names, folder / "libcuda.so.1", include.parent)
    return {
        "LD_PRELOAD": str(folder / "runtime.so"),
        "LD_LIBRARY_PATH": str(folder),
        "TRITON_LIBCUDA_PATH": str(folder),
    }


# -----------------------------------------------------------------------------
# Inside: one run of train.py on the stand-in


def stand_in_for_cudnn():
    """cuDNN's attention, which would ask a real GPU for a plan, as functions that only make room for its results."""

    def forward(q, k, v, bias, with_sums, *_, **__):
        B, H, T, _ = q.shape
        sums = q.new_empty(B, H, T, 1, dtype=torch.float32)
        none, number = torch.empty(0), torch.empty((), dtype=torch.int64)
        return torch.empty_like(q), sums, none, none, T, T, number, number, none

    def backward(grad, q, k, v, *_, **__):
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)

    library = torch.library.Library("aten", "IMPL")
    library.impl("_scaled_dot_product_cudnn_attention", forward, "CUDA")
    library.impl("_scaled_dot_product_cudnn_attention_backward", backward, "CUDA")
    return library  # with which they end


def note_graphs(graphs):
    """Append to `graphs` what Inductor makes of each: (kind, bytes read and written, its own kernels, others')."""
    from torch._inductor.graph import GraphLowering

    generate = GraphLowering.codegen

    def generate_and_note(graph):
        code = generate(graph)
        kind = "backward" if graph.is_backward else "inference" if graph.is_inference else "forward"
        kernels = collections.Counter(type(node).__name__ for node in graph.scheduler.nodes)
        others = kernels["ExternKernelSchedulerNode"]
        moved = sum(node.get_read_write_buffers_sizes() for node in graph.scheduler.nodes)
        graphs.append((kind, moved, kernels.total() - others - kernels["NopKernelSchedulerNode"], others))
        return code

    GraphLowering.codegen = generate_and_note


def train():
    """Run train.py for three steps and print a line of JSON with what was seen."""
    import prepare_data

    seen = {"graphs": []}
    library = stand_in_for_cudnn()
    note_graphs(seen["graphs"])
    start_clock, started = prepare_data.training_clock, time.perf_counter()

    def note_start():
        seen.setdefault("before_the_clock", time.perf_counter() - started)
        return start_clock()

    def score_one_batch(model, tokenizer, rows_per_pass):
        """In place of evaluate_bpb(), which would have it scored: its kernels do nothing."""
        seen["rows_per_pass"], evaluation_started = rows_per_pass, time.perf_counter()
        inputs, _ = prepare_data.to_device(prepare_data.load_rows("val")[:rows_per_pass], "cuda")
        with torch.no_grad():
            model(inputs)
        seen["evaluation"] = time.perf_counter() - evaluation_started
        return 0.0

    prepare_data.training_clock, prepare_data.evaluate_bpb = note_start, score_one_batch
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    counters = torch._dynamo.utils.counters["aot_autograd"]
    seen["compiled"], seen["loaded"] = counters["autograd_cache_miss"], counters["autograd_cache_hit"]
    seen["not_kept"] = counters["autograd_cache_bypass"]
    seen["peak_GB"] = torch.cuda.max_memory_allocated() / 2**30
    del library
    print("\n" + json.dumps(seen))


# -----------------------------------------------------------------------------
# Outside: both runs, and the table


def run_train(environment):
    """What train() saw in a process of its own. Prints its log and exits with 1 if it failed."""
    command = [sys.executable, "-W", "ignore", __file__, "--inside"]
    result = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    log = result.stdout.decode(errors="replace")
    if result.returncode:
        sys.exit(f"{log[-5000:]}\ntrain.py failed on the stand-in")
    return json.loads(log.splitlines()[-1])


def print_table(cold, warm):
    rows_per_pass, peak = cold["rows_per_pass"], cold["peak_GB"]
    print(f"Peak memory {peak:.1f} GB with {rows_per_pass} rows per pass, without cuDNN's workspaces\n")
    print(f"{'compile cache':40}{'empty':>10}{'full':>10}")
    names = {"before_the_clock": "seconds of the host before the clock", "evaluation": "seconds to the first score"}
    for key, name in names.items():
        print(f"{name:40}{cold[key]:10.1f}{warm[key]:10.1f}")
    for key in ("compiled", "loaded", "not_kept"):
        name = "graphs " + key.replace("_", " ")
        print(f"{name:40}{cold[key]:10}{warm[key]:10}")
    print(f"\n{'graph, as compiled':22}{'GB moved':>10}{'own kernels':>14}{'others':>10}")
    for kind, moved, own, others in cold["graphs"]:
        print(f"    {kind:18}{moved / 1e9:10.2f}{own:14}{others:10}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=float, default=9.0, help="of the GPU: 9.0 Hopper (default), 8.9 Ada, 8.0")
    parser.add_argument("--memory", type=int, default=80, help="of the GPU, in GB (default: 80)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        return train()
    from autoresearch.text import fail

    if torch.version.cuda is None:
        fail(f"torch {torch.__version__} has no CUDA; install a CUDA build in a virtual environment of its own")
    with tempfile.TemporaryDirectory() as folder:
        environment = build_stand_in(Path(folder)) | {
            "STAND_IN_GB": str(args.memory),
            "STAND_IN_CAPABILITY": str(round(10 * args.capability)),
            "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
            "TRITON_CACHE_DIR": f"{folder}/triton",
            "AUTORESEARCH_SCALE": "h100",
            "AUTORESEARCH_STEPS": "3",
        }
        print(f"A GPU of capability {args.capability} with {args.memory} GB, stood in for; torch {torch.__version__}")
        cold = run_train(environment)
        print_table(cold, run_train(environment))


if __name__ == "__main__":
    main()
