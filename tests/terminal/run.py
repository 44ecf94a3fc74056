"""Runs a program in a pseudo terminal: run.py EXPECTED KEYS PROGRAM ARGUMENT...

Waits until its output has EXPECTED, presses KEYS, and waits for its end. Prints JSON: its exit code, its output, and whether
the terminal's settings are the ones from before."""

import json
import os
import pty
import select
import signal
import sys
import termios
import time

PATIENCE = 30


def settings(terminal):
    """What a program in it feels: modes and characters. Linux adds the input's speed to the control modes when they are set."""
    modes_in, modes_out, _, modes_local, _, _, characters = termios.tcgetattr(terminal)
    return modes_in, modes_out, modes_local, characters


def main():
    expected, keys, *command = sys.argv[1:]
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, 100))
    before = settings(slave)
    child = os.fork()
    if child == 0:
        os.close(master)
        os.login_tty(slave)
        os.environ["TERM"] = "xterm"
        os.execvp(command[0], command)
    output = b""
    pressed = False
    raw = None
    end = time.monotonic() + PATIENCE
    status = None
    while status is None and time.monotonic() < end:
        if select.select([master], [], [], 0.1)[0]:
            output += os.read(master, 65536)
        if not pressed and expected.encode() in output:
            raw = settings(slave) != before
            os.write(master, keys.encode())
            pressed = True
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            status = code
    if status is None:
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    while select.select([master], [], [], 0.1)[0]:
        output += os.read(master, 65536)
    print(
        json.dumps(
            {
                "code": os.waitstatus_to_exitcode(status),
                "pressed": pressed,
                "changed": raw,
                "restored": settings(slave) == before,
                "output": output.decode("utf-8", "replace"),
            }
        )
    )


main()
