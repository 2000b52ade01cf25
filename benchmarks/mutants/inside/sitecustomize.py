"""Runs first in every process of a test: replaces a module by its mutant, or traces lines.

`MUTANT_FILE` is the module's file, `MUTANT_SOURCE` the file to read instead, `MUTANT_ROOT` the
test's first process. Lines executed in the folder `LINES_OF` are appended to the file `LINES_TO` as
`path:number`, once for each process.
"""

import importlib.machinery
import importlib.util
import os
import sys
import threading

SEEN: set = set()


def mutate(file, source):
    """Make imports of ``file`` read ``source`` instead."""
    with open(source, "rb") as handle:
        text = handle.read()
    loader = importlib.machinery.SourceFileLoader
    read = loader.get_data
    folder, name = os.path.split(importlib.util.cache_from_source(file))
    stem = name.partition(".")[0] + "."

    def get_data(self, path):
        where, what = os.path.split(path)
        if where == folder and what.startswith(stem):
            raise OSError("compiled files belong to the original module")
        return text if path == file else read(self, path)

    loader.get_data = get_data
    sys.dont_write_bytecode = True


def guard():
    """Restrict signals to processes of the test: a faulty core might signal any process."""
    root = int(os.environ["MUTANT_ROOT"])

    def own(pid):
        while pid > 1 and pid != root:
            try:
                with open(f"/proc/{pid}/stat") as stat:
                    pid = int(stat.read().rpartition(")")[2].split()[1])
            except OSError:
                return True  # no such process; the system call will report it
        return pid == root

    def own_group(group):
        return all(own(pid) for pid in members(group))  # the group's first process may have ended

    def guarded(send, own):
        def only_own(pid, number):
            if number and not own(pid):
                raise PermissionError(
                    f"no signal {number} for process {pid}, which is not of this test"
                )
            return send(pid, number)

        return only_own

    os.kill, os.killpg = guarded(os.kill, own), guarded(os.killpg, own_group)


def members(group):
    """Return the processes of a process group."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                _, _, own_group = stat.read().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(own_group) == group:
            found.append(int(pid))
    return found


def trace():
    """Trace executed lines from now on, in this process and its forks."""
    folder = os.environ["LINES_OF"] + os.sep
    known: dict = {}

    def line(frame, event, arg):
        if event == "line":
            _note(known[frame.f_code], frame.f_lineno)
        return line

    def call(frame, event, arg):
        code = frame.f_code
        if code not in known:
            known[code] = code.co_filename if code.co_filename.startswith(folder) else None
        return line if known[code] is not None else None

    threading.settrace(call)
    sys.settrace(call)


def _note(file, number):
    if (file, number) not in SEEN:
        SEEN.add((file, number))
        with open(os.environ["LINES_TO"], "a") as out:
            out.write(f"{file}:{number}\n")


if "MUTANT_FILE" in os.environ:
    mutate(os.environ["MUTANT_FILE"], os.environ["MUTANT_SOURCE"])
    guard()
if "LINES_TO" in os.environ:
    trace()
