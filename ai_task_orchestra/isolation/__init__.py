"""How programs of tasks are kept apart from the machine, from each other and from our secrets.

Three levels: 0 is none, 1 is Landlock and seccomp, 2 adds namespaces and a file system of its own. `offer` finds out
what the machine has, `choice` picks the level; the other modules are what a program's supervisor does with it. Those
(`kernel`, `landlock`, `seccomp`, `mounts`, `namespaces`, `limits`, `jail`, `trial`) use the standard library only and
import little of it: a supervisor is started for every program.
"""
