"""A second device on the CPU: built from `device.cpp` beside this file, and registered with torch as `second`.

Its memory is the host's and its numbers are the CPU's, but as on a GPU an operation that is given tensors of both
devices is refused. It can be had once per process, and stays.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils.backend_registration import generate_methods_for_privateuse1_backend, rename_privateuse1_backend
from torch.utils.cpp_extension import include_paths, library_paths

NAME = "second"
SOURCE = Path(__file__).with_name("device.cpp")


def compiler() -> str | None:
    """A C++ compiler, if this machine has one."""
    return next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def build(into: Path) -> Path:
    """The device as a library in the folder `into`. RuntimeError with what the compiler says if it cannot be built."""
    library, command = into / "second_device.so", [compiler() or "c++", "-std=c++20", "-O0", "-shared", "-fPIC"]
    for path in include_paths():
        command += ["-isystem", path]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}", str(SOURCE), "-o", str(library)]
    for path in library_paths():
        command += ["-L", path]
    done = subprocess.run([*command, "-ltorch_cpu", "-lc10"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return library


def register(library: Path) -> ctypes.CDLL:
    """Make the device known to torch in this process; the library's `most_bytes` and `forget_most` tell of memory."""
    torch.ops.load_library(str(library))
    rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _module())
    generate_methods_for_privateuse1_backend(for_storage=True)
    plain = torch.UntypedStorage.clone

    def clone(self: Any) -> Any:
        if self.device.type != NAME:
            return plain(self)
        whole = torch.empty(0, dtype=torch.uint8, device=NAME).set_(self, 0, (self.nbytes(),), (1,))
        return whole.clone().untyped_storage()

    torch.UntypedStorage.clone = clone  # torch's own asks for more than this device has
    found = ctypes.CDLL(str(library))
    found.most_bytes.restype = ctypes.c_int64
    return found


def _module() -> ModuleType:
    """What torch wants to know of a device type."""
    module: Any = ModuleType(NAME)
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.is_available = module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module._lazy_init = lambda: None
    module.manual_seed_all = lambda _seed: None
    module.get_rng_state = lambda _device=None: torch.get_rng_state()
    module.set_rng_state = lambda state, _device=None: torch.set_rng_state(state)
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    return module
