"""llama-server, built from the very source that the engine's llama.cpp comes from, to measure the engine against.

Built once and kept beside the compiled wheels. Needs cmake and a C++ compiler; fetches nothing but the source package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

FLAGS = [
    "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF", "-DBUILD_SHARED_LIBS=OFF",
]  # fmt: skip


def binary() -> Path:
    """The server's path, compiled the first time: some minutes."""
    release = version("llama-cpp-python")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "appliance" / f"llama-server-{release}"
    server = cache / "llama-server"
    if server.is_file():
        return server
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            raise SystemExit(f"Error: {tool} is missing.\nTry: apt install cmake build-essential")
    work = cache.with_suffix(".part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    print("Compiling llama-server from the engine's own source: some minutes, once.", file=sys.stderr)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-cache-dir", "--no-binary", "llama-cpp-python"]
    subprocess.run([*pip, "-d", str(work), f"llama-cpp-python=={release}"], check=True)
    with tarfile.open(next(work.glob("*.tar.gz"))) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # which Debian 12's Python does not have
        archive.extractall(work)
    source = next(work.glob("llama_cpp_python-*")) / "vendor" / "llama.cpp"
    subprocess.run(["cmake", "-B", str(work / "build"), "-S", str(source), *FLAGS], check=True, stdout=subprocess.DEVNULL)
    jobs = str(len(os.sched_getaffinity(0)))
    command = ["cmake", "--build", str(work / "build"), "--target", "llama-server", "-j", jobs]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    cache.mkdir(parents=True, exist_ok=True)
    shutil.copy2(work / "build" / "bin" / "llama-server", server)
    shutil.rmtree(work)
    return server
