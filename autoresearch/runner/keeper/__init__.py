"""The keeper: confines a command of a trial, and ends all that it started.

A trial's command runs below a keeper, a small process that outlives it by a moment: when the command
ends, or the keeper is told to end, everything that the command started is killed, even what has made
itself a session of its own. The command itself is confined before it starts, by what the machine has:

- Landlock, the kernel's own way for a process to give up rights: no root, no package, works in
  containers. It keeps reading the interpreter, the system's libraries and what the rules name, writing
  where the rules say, and the devices of the GPU. It loses all other files, and (kernel 6.12 and later)
  signals to processes outside.
- else bubblewrap, where it is installed and may make namespaces: the same files, no others to be seen.

With either, root's privileges go, and a system call filter takes away sockets and addresses, tracing, setting the
clock, asking what other processes have read, and every way to leave a note for another process that is not a file.

What builds and tests of other repositories need is opened by a rule of its own, `builds`: modes and times of files in
what may be written, shared memory and pseudo-terminals that nobody else sees, and by `network` the loopback.

It is a program of its own, which imports nothing of the loop: so its modules import each other by relative names.
main.py runs it, and says how; sandbox.py beside this folder, which is the loop's, makes its command.
"""

PARENT = "AUTORESEARCH_PARENT"  # environment variable: the process that started the keeper, and must not have ended
GROUP = "AUTORESEARCH_GROUP"  # environment variable: folder of the control group that counts the command's memory
