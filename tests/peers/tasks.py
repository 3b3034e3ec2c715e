"""The tasks in a dump, as drgn sees them: tasks.py VMLINUX CORE"""

import sys

import drgn
from drgn.helpers.linux.pid import for_each_task

program = drgn.Program()
program.set_core_dump(sys.argv[2])
program.load_debug_info([sys.argv[1]])
for task in for_each_task(program):
    print(task.pid.value_(), task.real_parent.tgid.value_(), task.comm.string_().decode(errors="replace"))
