#!/usr/bin/env bash
# accelerate: an `Accelerator` of several CPU processes that is given a plugin of FSDP2 shards nothing and says nothing: every
# process keeps the whole model, wrapped for data parallelism. torch's `fully_shard`, which it would call, shards the same
# model over the same processes of gloo.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
uv venv -q --python 3.11 "$work/env"
uv pip install -q --python "$work/env/bin/python" "accelerate==1.15.0" "torch==2.15.0" "numpy==2.4.6"
cat > "$work/check.py" <<'P'
import os
import sys
import warnings

import accelerate
import torch
import torch.multiprocessing as multiprocessing
from torch import nn

FREE = sys.argv[1:]


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))


def held(module: nn.Module) -> int:
    return sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in module.parameters())


def process(rank: int) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": FREE[0]}
    os.environ |= {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    from accelerate import Accelerator
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
        accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
        prepared, _ = accelerator.prepare(made := model(), torch.optim.AdamW(made.parameters()))
    own, whole, images = model(), sum(p.numel() for p in model().parameters()), torch.ones(2, 64)
    for layer in own:
        fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    fully_shard(own, mesh=init_device_mesh("cpu", (2,)))
    with torch.no_grad():
        same = torch.equal(own(images), model()(images))
    if rank == 0:
        print("accelerate", accelerate.__version__, "torch", torch.__version__)
        print(f"Accelerate: {accelerator.distributed_type}, {type(prepared).__name__}, {held(prepared)} of {whole} weights here")
        print(f"  warnings about sharding: {[str(one.message) for one in told if 'shard' in str(one.message).lower()]}")
        print(f"fully_shard: {held(own)} of {whole} weights here, the same outputs: {same}")
    assert held(prepared) == whole and not accelerator.is_fsdp2 and held(own) == whole // 2 and same


if __name__ == "__main__":
    multiprocessing.spawn(process, nprocs=2)
P
OMP_NUM_THREADS=1 "$work/env/bin/python" "$work/check.py" "$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')" 2>&1 | grep -v "^\[W\|^\[Gloo"
