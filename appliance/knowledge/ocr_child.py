"""Tesseract behind walls: limits first, then this process becomes tesseract: picture on its input, text on its output.

Started only by `ocr`, with the path of tesseract and its own arguments. Hides the limits: memory, processor seconds, files (it
may write none), open files, core dumps, network. Where the kernel refuses a network of its own, as under the worker's unit,
the unit's is empty anyway.
"""

from __future__ import annotations

import os
import sys

from appliance.knowledge.extract_child import no_network, no_resources

MEMORY = 2**30  # bytes of address space
SECONDS = 30  # of processor time for one page


def main() -> None:
    program, *arguments = sys.argv[1:]
    no_resources(MEMORY, SECONDS)
    no_network()
    # One thread: the processor belongs to those who ask.
    os.execve(program, [program, *arguments], {**os.environ, "OMP_THREAD_LIMIT": "1"})


if __name__ == "__main__":
    main()
