"""Python in a process of its own."""

import os
import subprocess
import sys


def python(*command, cwd, path=""):
    """Run Python with packages in ``path``; return its exit code, stdout and stderr."""
    environment = os.environ | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr
